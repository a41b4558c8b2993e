"""The catalogue: every pool row without its pixels, with its scores, sorted by id.

The neighbour index, the map and the coresets refer to an image by its row in this order. Outside of
the service only ids last.
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from echostill.curation.service.data.columns import SortedTexts, codes, numbers, open_columns
from echostill.curation.service.data.rows import RowReader
from echostill.platform.errors import EchostillError
from echostill.platform.tables.table import Table

if TYPE_CHECKING:
    from echostill.curation.service.data.neighbours import Report

CATEGORIES = ("organ", "device", "label")
ORIGIN = ("group_id", "source", "organ", "device", "label", "frame", "width", "height")
LOCATION = ("part", "part_row")  # of the staged pixels: number of the pool's part, row in it
NOT_COPIED = ("image", "feature", "perceptual_hash", "thumbnail")
# The column of the scores that joins them to the pool; all their others are added.
SCORE_ID = "image_id"


def build_catalogue(pool: Table, scores: Table | None, report: "Report") -> pa.Table:
    """Join pool and scores without pixels and features, sorted by id.

    Args:
        pool: the pool.
        scores: its scores; None where there are none.
        report: called with stage and fraction.

    Returns:
        The pool's columns, the scores' columns (null if an image was not scored), ``scored``,
        ``part`` and ``part_row``. ``organ``, ``device`` and ``label`` are dictionary-encoded. The
        schema's metadata names the columns of both tables.
    """
    import pyarrow.compute as pc

    table = _with_location(pool, report)
    report("sorting", 0.6)
    own = [name for name in table.column_names if name not in LOCATION]
    order = pc.sort_indices(table["image_id"])
    table = table.take(order)
    added: list[str] = []
    if scores is not None:
        table, added = _with_scores(table, scores)
    else:
        table = table.append_column("scored", pa.array(np.zeros(table.num_rows, dtype=bool)))
    for name in CATEGORIES:
        index = table.column_names.index(name)
        encoded = pc.fill_null(table[name], "").combine_chunks().dictionary_encode()
        table = table.set_column(index, name, encoded)
    return table.replace_schema_metadata(
        {"pool": "\n".join(own), "scores": "\n".join(added)}
    ).combine_chunks()


def _with_location(pool: Table, report: "Report") -> pa.Table:
    wanted = [name for name, _ in pool.manifest["schema"] if name not in NOT_COPIED]
    pieces: list[pa.Table] = []
    for number, piece in enumerate(pool.parts(wanted)):
        report("reading", 0.6 * number / len(pool.part_names))
        part = pa.array(np.full(piece.num_rows, number, dtype=np.int32))
        row = pa.array(np.arange(piece.num_rows, dtype=np.int32))
        pieces.append(piece.append_column("part", part).append_column("part_row", row))
    if not pieces:
        raise EchostillError(
            f"the pool '{pool.storage.root}' has no rows: there is nothing to serve."
        )
    return pa.concat_tables(pieces)


def _with_scores(table: pa.Table, scores: Table) -> tuple[pa.Table, list[str]]:
    import pyarrow.compute as pc

    known = set(table.column_names)
    added = [
        name
        for name, _ in scores.manifest["schema"]
        if name != SCORE_ID and name not in NOT_COPIED and name not in known
    ]
    values = scores.read([SCORE_ID, *added])
    row = pc.index_in(table["image_id"], value_set=values[SCORE_ID].combine_chunks())
    row = row.combine_chunks() if isinstance(row, pa.ChunkedArray) else row
    for name in added:
        table = table.append_column(name, values[name].combine_chunks().take(row))
    return table.append_column("scored", pc.is_valid(row)), added


class Catalogue:
    """A mapped catalogue."""

    def __init__(self, path: Path) -> None:
        self.table = open_columns(path)
        metadata = self.table.schema.metadata
        self.pool_columns = metadata[b"pool"].decode().split("\n")
        self.score_columns = [name for name in metadata[b"scores"].decode().split("\n") if name]
        self.ids = SortedTexts(self.table["image_id"])

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def scored(self) -> np.ndarray:
        """(N,) bool."""
        return numbers(self.table["scored"])

    @cached_property
    def scored_rows(self) -> np.ndarray:
        """Rows of the scored images, ascending, uint32."""
        return np.flatnonzero(self.scored).astype(np.uint32)

    @cached_property
    def categories(self) -> dict[str, tuple[np.ndarray, list[str]]]:
        """Of organ, device and label: codes (N,) and the texts that they stand for."""
        return {name: codes(self.table[name]) for name in CATEGORIES}

    @cached_property
    def _pool_rows(self) -> RowReader:
        return RowReader(self.table, self.pool_columns)

    @cached_property
    def _score_rows(self) -> RowReader:
        return RowReader(self.table, self.score_columns)

    @cached_property
    def origins(self) -> RowReader:
        """Where the images come from, as samples show it."""
        return RowReader(self.table, ORIGIN)

    def counts(self, name: str, limit: int) -> list[dict[str, Any]]:
        """Count the images of each value of a category, most frequent first."""
        indices, values = self.categories[name]
        images = np.bincount(indices, minlength=len(values)).tolist()
        found = sorted(zip(values, images, strict=True), key=lambda pair: (-pair[1], pair[0]))
        return [{"value": value, "images": count} for value, count in found[:limit] if count]

    def rows(self, rows: np.ndarray, columns: list[str] | None = None) -> pa.Table:
        """Read some rows, in the order given."""
        table = self.table if columns is None else self.table.select(columns)
        return table.take(pa.array(rows))

    def image(self, row: int) -> dict[str, Any]:
        """Return the pool's columns of one image."""
        return self._pool_rows.row(row)

    def scores(self, row: int) -> dict[str, Any] | None:
        """Return the scores' columns of one image, None if it was not scored."""
        if not self.score_columns or not self.scored[row]:
            return None
        return self._score_rows.row(row)

    def location(self, row: int) -> tuple[int, int]:
        """Return the number of the pool's part that holds the pixels, and the row in it."""
        return self.table["part"][row].as_py(), self.table["part_row"][row].as_py()
