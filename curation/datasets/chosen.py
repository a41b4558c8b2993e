"""The chosen images of a coreset: what is known of each, and their staged pixels."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from echostill.platform.errors import EchostillError
from echostill.platform.tables.store import Store, check_origin
from echostill.platform.tables.table import Table

COLUMNS = (
    "image_id",
    "group_id",
    "source",
    "organ",
    "device",
    "label",
    "modality",
    "frame",
    "width",
    "height",
    "original_width",
    "original_height",
    "colour",
)
_PART, _ROW = "part", "row"
_AT_ONCE = 256  # pictures in memory


@dataclass(frozen=True)
class ChosenImages:
    """The chosen images, in the order of the pool.

    Attributes:
        store: The store they are in.
        name: Name of the coreset.
        pool: The pool table.
        coreset: The coreset table.
        table: A row per image: :data:`COLUMNS`, and where it lies in the pool.
    """

    store: Store
    name: str
    pool: Table
    coreset: Table
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def described(self, rows: np.ndarray | None = None) -> pa.Table:
        """Return what is known of all images, or of some, in :data:`COLUMNS`."""
        known = self.table.select(list(COLUMNS))
        return known if rows is None else known.take(pa.array(rows))

    def pictures(self, rows: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """Yield row and encoded picture of some images, as they are staged in the pool.

        Args:
            rows: (N,) ascending row numbers of :attr:`table`.
        """
        parts = self.table[_PART].to_numpy()[rows]
        places = self.table[_ROW].to_numpy()[rows]
        for part in np.unique(parts):
            inside = parts == part
            yield from self._in_part(self.pool.part_names[part], rows[inside], places[inside])

    def _in_part(
        self, name: str, rows: np.ndarray, places: np.ndarray
    ) -> Iterator[tuple[int, bytes]]:
        """Read only the row groups that hold a wanted picture."""
        ends = np.cumsum(self.pool.row_groups(name))
        wanted_groups, group_of = np.unique(
            np.searchsorted(ends, places, side="right"), return_inverse=True
        )
        for number, group in enumerate(wanted_groups):
            own = group_of == number
            first = int(ends[group - 1]) if group else 0
            for batch in self.pool.batches(name, ["image"], _AT_ONCE, [int(group)]):
                here = own & (places >= first) & (places < first + batch.num_rows)
                found = batch.column(0).take(pa.array(places[here] - first))
                yield from zip(rows[here].tolist(), found.to_pylist(), strict=True)
                first += batch.num_rows


def open_chosen(store: str, name: str) -> ChosenImages:
    """Open a coreset for its pictures.

    Raises:
        UsageError: There is no such coreset, or the pool was made again since it was chosen.
        EchostillError: A chosen image is not in the pool.
    """
    opened = Store(store)
    coreset, pool = opened.open_coreset(name), opened.open_pool()
    check_origin(opened, coreset)
    rows = coreset.read(["image_id", "selected"])
    ids = rows.filter(pc.field("selected"))["image_id"]
    found = []
    for number, part in enumerate(pool.parts(list(COLUMNS))):
        keep = pc.is_in(part["image_id"], value_set=ids.combine_chunks())
        places = np.flatnonzero(keep.to_numpy())
        chosen = part.take(pa.array(places))
        chosen = chosen.append_column(_PART, pa.array(np.full(len(places), number, np.int32)))
        found.append(chosen.append_column(_ROW, pa.array(places)))
    table = pa.concat_tables(found).combine_chunks().replace_schema_metadata(None)
    if table.num_rows != len(ids):
        raise EchostillError(
            f"{len(ids) - table.num_rows} of {len(ids)} images of coreset '{name}' are not in the "
            f"pool '{pool.storage.root}': select again from this pool."
        )
    return ChosenImages(opened, name, pool, coreset, table)
