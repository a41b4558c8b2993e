"""Ids that occur more than once, settled when all shards are read.

Ids come from content and origin. The same DICOM instance in two files is one image, and the second
is quarantined. But there are exports that give one instance UID to many pictures: with other pixels
it is another image, and its id comes from the repeated one and its own content. The first keeps the
id that it has, so that what is read again later gets the same ids.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pyarrow as pa

from echostill.curation.ingestion.identity import digest
from echostill.curation.ingestion.sources import Failure
from echostill.platform.shards.records import Record
from echostill.platform.shards.stage import ShardedStage
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA
from echostill.platform.tables.table import Table


class RepeatedIds:
    """Settles the ids of rows that come in order.

    Attributes:
        renamed: Rows that got an id of their own.
    """

    def __init__(self, repeated: Iterable[str]) -> None:
        """Take the ids that occur more than once; all others are settled already."""
        self.renamed = 0
        self._repeated = set(repeated)
        self._first: dict[str, str] = {}  # content by id
        self._seen: set[str] = set()

    def settle(self, ids: Sequence[str], contents: Sequence[str]) -> list[str | None]:
        """Return each row's id, None where the row is a repeated image.

        Args:
            ids: As the rows have them.
            contents: Hashes of their pixels.
        """
        return [self._settled(*row) for row in zip(ids, contents, strict=True)]

    def _settled(self, image_id: str, content: str) -> str | None:
        found = image_id
        if image_id in self._repeated and self._first.setdefault(image_id, content) != content:
            found = digest("content", image_id, content)
        if found in self._seen:
            return None
        self._seen.add(found)
        self.renamed += found != image_id
        return found


def settle_repeated_ids(stage: ShardedStage, records: dict[int, Record]) -> int:
    """Quarantine repeated images, and give other images under a repeated id one of their own.

    A shard is amended by writing it again, and is unfinished meanwhile.

    Returns:
        The number of rows with a new id.
    """
    seen: set[str] = set()
    repeated: set[str] = set()
    for index in sorted(records):
        for image_id in _columns(stage, records[index], ["image_id"])[0]:
            (repeated if image_id in seen else seen).add(image_id)
    del seen
    if not repeated:
        return 0
    settling = RepeatedIds(repeated)
    for index in sorted(records):
        ids, contents = _columns(stage, records[index], ["image_id", "content_hash"])
        settled = settling.settle(ids, contents)
        if settled != ids:
            _amend(stage, records, index, settled)
    return settling.renamed


def _columns(stage: ShardedStage, record: Record, names: list[str]) -> list[list[str]]:
    part = Table(stage.table, {}).read_part(record["part"]["file"], names)
    return [part[name].to_pylist() for name in names]


def _amend(
    stage: ShardedStage, records: dict[int, Record], index: int, settled: list[str | None]
) -> None:
    outcome = stage.read(records[index])
    keep = [image_id is not None for image_id in settled]
    repeated = outcome.rows.filter(pa.array([not kept for kept in keep])).to_pylist()
    refused = [
        Failure(
            row["source"],
            row["image_id"],
            "RepeatedId",
            "the same image (the same DICOM instance and frame, the same pixels) was read already",
        ).row()
        for row in repeated
    ]
    refusals = pa.Table.from_pylist(refused, schema=QUARANTINE_SCHEMA)
    amended = outcome.moved(keep, refusals)
    place = amended.rows.schema.get_field_index("image_id")
    ids = pa.array([image_id for image_id in settled if image_id is not None], pa.string())
    rows = amended.rows.set_column(place, amended.rows.schema.field(place), ids)
    records[index] = stage.write(index, replace(amended, rows=rows))
