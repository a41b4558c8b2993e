"""A coreset in the service: mapped columns, the order inside the clusters, and statistics."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from echostill.curation.selection.reasons import GROUP_LIMIT
from echostill.curation.service.data.catalogue import CATEGORIES, ORIGIN, Catalogue
from echostill.curation.service.data.columns import numbers, open_columns, write_columns
from echostill.curation.service.data.neighbours import bits
from echostill.curation.service.data.rows import RowReader, dictionaries
from echostill.curation.service.problems import unknown
from echostill.platform.errors import UsageError
from echostill.platform.tables.table import Table

if TYPE_CHECKING:
    from echostill.curation.selection.settings import SelectionSettings

OWN = (
    "cluster",
    "cluster_size",
    "cluster_rank",
    "distance",
    "distance_rank",
    "gradient",
    "gradient_rank",
    "dual_rank",
    "quota",
    "selected",
    "reason",
)
SAMPLE = ("image_id", "row", *ORIGIN, *OWN)  # the members of a sample, in their order
HISTOGRAMS = ("distance", "gradient", "dual_rank")
BINS = 20
BOUNDARIES = 20_000  # clusters, or strata in them, of which is kept where the choice ended


@dataclass(frozen=True)
class Entry:
    """A finished coreset in the store."""

    name: str
    table: Table
    created: str
    configuration: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """Return the coreset as it appears in the list of coresets."""
        return {
            "name": self.name,
            "images": self.table.rows,
            "budget": self.table.manifest.get("budget"),
            "clusters": self.table.manifest.get("clusters"),
            "method": self.configuration.get("method"),
            "seed": self.configuration.get("seed"),
            "digest": self.table.digest,
            "created": self.created,
        }


def write_coreset(path: Path, table: Table, catalogue: Catalogue) -> None:
    """Write a coreset's columns, with its rows' numbers in the catalogue and their order.

    ``row`` is the number; ``by_cluster`` lists the rows cluster after cluster, by cluster rank.
    """
    import pyarrow.compute as pc

    columns = table.read().sort_by("image_id")
    known = catalogue.table["image_id"].combine_chunks()
    row = pc.index_in(columns["image_id"].combine_chunks().cast(known.type), value_set=known)
    kept = pc.is_valid(row)
    columns, row = columns.filter(kept), row.filter(kept)
    order = np.lexsort((numbers(columns["cluster_rank"]), numbers(columns["cluster"])))
    columns = columns.append_column("row", row.cast(pa.uint32()))
    write_columns(path, columns.append_column("by_cluster", pa.array(order.astype(np.uint32))))


class Coreset:
    """A mapped coreset. Positions count its rows, which are sorted by id."""

    def __init__(self, entry: Entry, path: Path, catalogue: Catalogue) -> None:
        self.entry = entry
        self.catalogue = catalogue
        self.table = open_columns(path)
        self.rows = numbers(self.table["row"])
        self.cluster = numbers(self.table["cluster"])
        self.selected = numbers(self.table["selected"])
        self._by_cluster = numbers(self.table["by_cluster"])
        self.aligned = len(self.rows) == len(catalogue)
        self._spread: dict[str, np.ndarray] = {}
        self._boundaries: dict[tuple[int, str | None], dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def own_columns(self) -> list[str]:
        """The coreset table's columns."""
        return [name for name in self.table.column_names if name not in ("row", "by_cluster")]

    @cached_property
    def cluster_starts(self) -> np.ndarray:
        """(k + 1,) where each cluster begins in the order by cluster."""
        outside = int((self.cluster < 0).sum())  # rows that were excluded from the clustering
        sizes = np.bincount(self.cluster[self.cluster >= 0])
        return outside + np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @cached_property
    def selected_positions(self) -> np.ndarray:
        """Positions of the chosen rows, ascending, uint32."""
        return np.flatnonzero(self.selected).astype(np.uint32)

    @cached_property
    def selected_bits(self) -> np.ndarray:
        """The chosen rows of the catalogue, as the neighbour index wants them."""
        mask = np.zeros(len(self.catalogue), dtype=bool)
        mask[self.rows[self.selected_positions]] = True
        return bits(mask)

    @cached_property
    def unselected_bits(self) -> np.ndarray:
        """The scored rows of the catalogue that were not chosen."""
        mask = np.zeros(len(self.catalogue), dtype=bool)
        mask[self.rows] = ~self.selected
        return bits(mask)

    def warm(self) -> None:
        """Compute what most answers need, before the first of them."""
        for column in (self.selected_positions, self.selected_bits, self.unselected_bits):
            assert column is not None
        assert self.stats
        for name in CATEGORIES:
            self.category(name)

    def position(self, row: int) -> int | None:
        """Return the position of a row of the catalogue, None if the coreset does not have it."""
        if self.aligned:
            return row
        position = int(np.searchsorted(self.rows, row))
        found = position < len(self.rows) and self.rows[position] == row
        return position if found else None

    def members(self, cluster: int) -> np.ndarray | None:
        """Positions of a cluster's images by cluster rank; None if there is no such cluster."""
        if not 0 <= cluster < len(self.cluster_starts) - 1:
            return None
        found = self._by_cluster[self.cluster_starts[cluster] : self.cluster_starts[cluster + 1]]
        return found if len(found) else None

    def members_of(self, cluster: int) -> np.ndarray:
        """Positions of a cluster's images by cluster rank.

        Raises:
            Problem: There is no such cluster.
        """
        members = self.members(cluster)
        if members is None:
            last = len(self.cluster_starts) - 2
            raise unknown(
                "cluster",
                f"coreset '{self.entry.name}' has no cluster {cluster}: the clusters are numbered "
                f"from 0 to {last}.",
            )
        return members

    def column(self, name: str) -> np.ndarray:
        """Return a column of numbers by position: the coreset's own, or the catalogue's."""
        if name in OWN:
            return numbers(self.table[name])
        if name not in self._spread:
            if name not in self.catalogue.table.column_names:
                raise UsageError(f"this store has no column '{name}'.")
            whole = numbers(self.catalogue.table[name])
            self._spread[name] = whole if self.aligned else whole[self.rows]
        return self._spread[name]

    def category(self, name: str) -> tuple[np.ndarray, list[str]]:
        """Return the codes of organ, device or label by position, and their texts."""
        indices, values = self.catalogue.categories[name]
        if self.aligned:
            return indices, values
        key = f"code {name}"
        if key not in self._spread:
            self._spread[key] = indices[self.rows]
        return self._spread[key], values

    def samples(self, positions: np.ndarray) -> list[dict[str, Any]]:
        """Return the samples at some positions, in the order given, as JSON can show them."""
        image_id, row, *own = self._sample_rows.json_columns(positions)
        origin = self.catalogue.origins.json_columns(self.rows[positions])
        return dictionaries(SAMPLE, [image_id, row, *origin, *own])

    @cached_property
    def _sample_rows(self) -> RowReader:
        return RowReader(self.table, ("image_id", "row", *OWN))

    @cached_property
    def _own_rows(self) -> RowReader:
        return RowReader(self.table, self.own_columns)

    def why(
        self, position: int, pool_row: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Say why an image is, or is not, in the coreset: in words and in numbers.

        Args:
            position: of the image.
            pool_row: its row of the pool, if it has been read already.
        """
        from echostill.curation.selection.explain.explain import describe_explanation, explained

        if pool_row is None:
            pool_row = self.catalogue.image(int(self.rows[position]))
        own = self._own_rows.row(position)
        found = explained(
            own,
            self._boundary(position, own),
            self._of_group(own["group_id"]) if GROUP_LIMIT in own["reason"] else self.table,
            pool_row,
            self.settings,
            {"pool_size": len(self), "budget": len(self.selected_positions)},
        )
        return describe_explanation(found), found

    def _boundary(self, position: int, own: Mapping[str, Any]) -> dict[str, Any]:
        """Where the choice ended in an image's cluster; the same for all images there."""
        import pyarrow.compute as pc

        from echostill.curation.selection.explain.explain import BOUNDARY_COLUMNS, boundary_of

        stratum = own["stratum"] if self.settings.balance is not None else None
        key = (own["cluster"], stratum)
        found = self._boundaries.get(key)
        if found is None:
            near = self.members(own["cluster"])
            columns = [*BOUNDARY_COLUMNS, *(["stratum"] if stratum is not None else [])]
            members = self.table.select(columns).take(
                pa.array([position] if near is None else near)
            )
            if stratum is not None:
                members = members.filter(pc.equal(members["stratum"], stratum))
            found = boundary_of(members.sort_by("cluster_rank"))
            if near is not None and len(self._boundaries) < BOUNDARIES:
                self._boundaries[key] = found
        return found

    def _of_group(self, group: str) -> pa.Table:
        """The images of a group."""
        import pyarrow.compute as pc

        columns = self.table.select(["image_id", "group_id", "selected"])
        return columns.filter(pc.equal(columns["group_id"], group))

    @cached_property
    def settings(self) -> "SelectionSettings":
        """How the coreset was chosen."""
        from echostill.curation.selection.stage import SelectConfig  # only `why` needs selection
        from echostill.platform.config import validate

        return validate(SelectConfig, self.entry.configuration)

    @cached_property
    def clusters(self) -> dict[str, np.ndarray]:
        """Per cluster (k,): ``cluster``, ``size``, ``quota``, ``selected``, ``mean_distance``."""
        size = np.diff(self.cluster_starts)
        count = len(size)
        clustered = self.cluster >= 0
        inside = slice(None) if clustered.all() else clustered
        own = self.cluster[inside]
        quota = np.zeros(count, dtype=np.int64)
        quota[own] = self.column("quota")[inside]
        chosen = np.bincount(own, weights=self.selected[inside], minlength=count)
        total = np.bincount(own, weights=self.column("distance")[inside], minlength=count)
        return {
            "cluster": np.arange(count),
            "size": size,
            "quota": quota,
            "selected": chosen.astype(np.int64),
            "mean_distance": total / np.maximum(size, 1),
        }

    def cluster_item(self, cluster: int, values: int = 3) -> dict[str, Any]:
        """Describe one cluster that exists."""
        members = self.members(cluster)
        assert members is not None
        nearest = members[np.argmin(self.column("distance_rank")[members])]
        numbers_ = {name: column[cluster].item() for name, column in self.clusters.items()}
        return {
            **numbers_,
            "typical": self.catalogue.ids[int(self.rows[nearest])],
            "organs": self._most_frequent("organ", members, values),
            "devices": self._most_frequent("device", members, values),
        }

    def _most_frequent(self, name: str, positions: np.ndarray, limit: int) -> list[dict[str, Any]]:
        indices, values = self.category(name)
        found, images = np.unique(indices[positions], return_counts=True)
        order = np.argsort(-images, kind="stable")[:limit]
        return [{"value": values[found[i]], "images": int(images[i])} for i in order]

    @cached_property
    def stats(self) -> dict[str, Any]:
        """Numbers about the whole coreset."""
        sizes = self.clusters["size"]
        sizes = sizes[sizes > 0]
        return {
            "name": self.entry.name,
            "images": len(self),
            "selected": len(self.selected_positions),
            "groups": self._groups(),
            "by": {name: self._shares(name) for name in CATEGORIES},
            "clusters": {
                "count": len(sizes),
                "smallest": int(sizes.min(initial=2**62)) if len(sizes) else 0,
                "median": float(np.median(sizes)) if len(sizes) else 0.0,
                "largest": int(sizes.max(initial=0)),
                "without_selected": int(
                    ((self.clusters["selected"] == 0) & (self.clusters["size"] > 0)).sum()
                ),
            },
            "histograms": {name: self._histogram(name) for name in HISTOGRAMS},
        }

    def _groups(self) -> dict[str, int]:
        import pyarrow.compute as pc

        groups = self.table["group_id"]
        chosen = groups.take(pa.array(self.selected_positions))
        return {
            "pool": pc.count_distinct(groups).as_py(),
            "selected": pc.count_distinct(chosen).as_py(),
        }

    def _shares(self, name: str) -> list[dict[str, Any]]:
        indices, values = self.category(name)
        images = np.bincount(indices, minlength=len(values))
        chosen = np.bincount(indices[self.selected_positions], minlength=len(values))
        order = sorted(range(len(values)), key=lambda code: (-images[code], values[code]))
        return [
            {
                "value": values[code],
                "images": int(images[code]),
                "selected": int(chosen[code]),
                "share": round(float(chosen[code] / images[code]), 6),
            }
            for code in order
            if images[code]
        ]

    def _histogram(self, name: str) -> dict[str, list[float]]:
        values = self.column(name)
        chosen_values = values[self.selected_positions]
        pool, edges = np.histogram(values[np.isfinite(values)], bins=BINS)
        chosen, _ = np.histogram(chosen_values[np.isfinite(chosen_values)], bins=edges)
        return {"edges": edges.tolist(), "pool": pool.tolist(), "selected": chosen.tolist()}


def read_entry(name: str, table: Table, created: str) -> Entry:
    """Read the description of a finished coreset."""
    configuration: Mapping[str, Any] = json.loads(table.storage.read("configuration.json"))
    return Entry(name, table, created, dict(configuration))
