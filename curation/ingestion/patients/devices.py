"""One spelling for each device of a pool, settled when all shards are read.

A manifest, a DICOM header and another hospital's header may write one scanner in several ways, and
quotas by device would count it as often. Words that differ in case and blanks alone are one device,
in the spelling that most of its images have.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from echostill.platform.shards.records import Record
from echostill.platform.shards.stage import ShardedStage
from echostill.platform.tables.table import decode_parquet


def other_spellings(images: Mapping[str, int]) -> dict[str, str]:
    """Return the spellings to replace, each with the one that most images have.

    Args:
        images: How many images have each spelling; of equally many, the first counts.
    """
    kept: dict[str, str] = {}
    for device, number in images.items():
        word = _word(device)
        if word not in kept or number > images[kept[word]]:
            kept[word] = device
    return {device: kept[_word(device)] for device in images if kept[_word(device)] != device}


def settle_devices(stage: ShardedStage, records: dict[int, Record]) -> None:
    """Write the shards in which a device is spelt unlike in most of the pool again."""
    images: Counter[str] = Counter()
    shards: dict[int, set[str]] = {}
    for index in sorted(records):
        data = stage.table.read(records[index]["part"]["file"])
        devices = decode_parquet(data, ["device"])["device"].to_pylist()
        images.update(devices)
        shards[index] = set(devices)
    others = other_spellings(images)
    for index in (index for index, devices in shards.items() if devices & others.keys()):
        outcome = stage.read(records[index])
        place = outcome.rows.schema.get_field_index("device")
        settled = [others.get(device, device) for device in outcome.rows["device"].to_pylist()]
        rows = outcome.rows.set_column(
            place, outcome.rows.schema.field(place), pa.array(settled, pa.string())
        )
        records[index] = stage.write(index, replace(outcome, rows=rows))


def _word(device: str) -> str:
    return "".join(device.casefold().split())
