"""One spelling for each device of a pool, settled when all shards are read.

A manifest, a DICOM header and another hospital's header may write one scanner in several ways, and
quotas by device would count it as often. Words that differ in case and blanks alone are one device,
in the spelling that most of its images have.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pyarrow as pa

from echostill.platform.shards.records import Record
from echostill.platform.shards.stage import ShardedStage
from echostill.platform.tables.table import Table


def other_spellings(images: Mapping[str, int], settled: Iterable[str] = ()) -> dict[str, str]:
    """Return the spellings to replace, each with the one that most images have.

    Args:
        images: How many images have each spelling; of equally many, the first counts.
        settled: Spellings that stay, however many images have others.
    """
    kept = {_word(device): device for device in settled}
    stays = set(kept)
    for device, number in images.items():
        word = _word(device)
        if word not in kept or (word not in stays and number > images[kept[word]]):
            kept[word] = device
    return {device: kept[_word(device)] for device in images if kept[_word(device)] != device}


def settle_devices(stage: ShardedStage, records: dict[int, Record]) -> None:
    """Write the shards in which a device is spelt unlike in most of the pool again.

    The spellings of a version of the pool stay when it grows.
    """
    settled: set[str] = set()
    first = 0
    for last in [growth.parts for growth in stage.history] or [len(records)]:
        settled |= _settle(stage, records, range(first, last), settled)
        first = last


def _settle(
    stage: ShardedStage, records: dict[int, Record], shards: Iterable[int], settled: set[str]
) -> set[str]:
    """Settle the devices of some shards, and return their spellings."""
    images: Counter[str] = Counter()
    spelt: dict[int, set[str]] = {}
    for index in shards:
        part = Table(stage.table, {}).read_part(records[index]["part"]["file"], ["device"])
        devices = part["device"].to_pylist()
        images.update(devices)
        spelt[index] = set(devices)
    others = other_spellings(images, settled)
    for index in (index for index, devices in spelt.items() if devices & others.keys()):
        outcome = stage.read(records[index])
        place = outcome.rows.schema.get_field_index("device")
        names = [others.get(device, device) for device in outcome.rows["device"].to_pylist()]
        rows = outcome.rows.set_column(
            place, outcome.rows.schema.field(place), pa.array(names, pa.string())
        )
        records[index] = stage.write(index, replace(outcome, rows=rows))
    return {others.get(device, device) for device in images}


def _word(device: str) -> str:
    return "".join(device.casefold().split())
