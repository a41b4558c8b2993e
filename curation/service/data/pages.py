"""Filters, order and pages of a coreset's samples.

Which rows pass the filters, and in which order, is computed on whole columns with NumPy and cached
for the next page. A table does not change under its digest, so neither does a page.
"""

import base64
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from echostill.curation.service.data.catalogue import CATEGORIES
from echostill.curation.service.data.columns import numbers
from echostill.curation.service.data.coresets import Coreset
from echostill.curation.service.problems import Problem, bad_request
from echostill.platform.errors import nearest

NUMBERS = (
    "cluster",
    "cluster_size",
    "cluster_rank",
    "distance",
    "distance_rank",
    "gradient",
    "gradient_rank",
    "dual_rank",
    "quota",
    "gradient_mean",
    "gradient_std",
    "reconstruction_error",
    "mean",
    "contrast",
    "width",
    "height",
    "frame",
)
SELECTED = ("true", "false", "any")
SORTS = ("image_id", *NUMBERS)
CACHE_BYTES = 256 * 2**20  # of cached positions; 3M rows take 12 MB
DENSE = 0.1  # above this share of rows, filtering the sorted whole is faster than sorting the rest


@dataclass(frozen=True)
class SampleQuery:
    """Which samples, in which order.

    Attributes:
        selected: ``true``, ``false`` or ``any``.
        organ, device, label, group_id, cluster: any of these values; empty for all.
        source: text that the source must contain.
        least, most: (column, number) bounds, inclusive.
        sort: a column, ``-`` in front for descending.
    """

    selected: str = "true"
    organ: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    group_id: tuple[str, ...] = ()
    cluster: tuple[int, ...] = ()
    source: str = ""
    least: tuple[tuple[str, float], ...] = ()
    most: tuple[tuple[str, float], ...] = ()
    sort: str = "image_id"

    def digest(self, coreset: Coreset) -> str:
        """A key for the answer: the query and the coreset's content."""
        # The fields themselves: `asdict` copies them deeply, in ten times the time.
        text = json.dumps([coreset.entry.table.digest, vars(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def sample_query(
    *,
    selected: str = "true",
    organ: Sequence[str] = (),
    device: Sequence[str] = (),
    label: Sequence[str] = (),
    group_id: Sequence[str] = (),
    cluster: Sequence[int] = (),
    source: str = "",
    min: Sequence[str] = (),
    max: Sequence[str] = (),
    sort: str = "image_id",
) -> SampleQuery:
    """Build a query from the parameters of the interface (docs/api.md).

    Raises:
        Problem: An invalid choice or bound, or an unknown column to sort by.
    """
    check_selected(selected)
    return SampleQuery(
        selected=selected,
        organ=tuple(sorted(organ)),
        device=tuple(sorted(device)),
        label=tuple(sorted(label)),
        group_id=tuple(sorted(group_id)),
        cluster=tuple(sorted(cluster)),
        source=source,
        least=bounds(min),
        most=bounds(max),
        sort=check_sort(sort),
    )


def bounds(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Read ``column:number`` texts.

    Raises:
        Problem: Another form, an unknown column, or no finite number.
    """
    found = []
    for text in texts:
        name, _, value = text.partition(":")
        if name not in NUMBERS:
            raise bad_request(
                f"cannot bound '{name}'.{nearest(name, NUMBERS)} Columns: {', '.join(NUMBERS)}."
            )
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not np.isfinite(number):
            raise bad_request(
                f"'{text}' does not have the form column:number, such as distance:0.2."
            )
        found.append((name, number))
    return tuple(found)


def check_selected(selected: str) -> None:
    """Check which rows are wanted: selected ones, others, or any.

    Raises:
        Problem: Another value.
    """
    if selected not in SELECTED:
        raise bad_request(f"selected='{selected}': expected {', '.join(SELECTED)}.")


def check_sort(sort: str, valid: tuple[str, ...] = SORTS) -> str:
    """Return the sort key if it is valid.

    Raises:
        Problem: An unknown column.
    """
    name = sort.removeprefix("-")
    if name not in valid:
        raise bad_request(
            f"cannot sort by '{name}'.{nearest(name, valid)} Columns: {', '.join(valid)}."
        )
    return sort


def write_cursor(offset: int, digest: str) -> str:
    """Encode where the next page begins."""
    return base64.urlsafe_b64encode(json.dumps([offset, digest]).encode()).decode().rstrip("=")


def read_cursor(cursor: str | None, digest: str) -> int:
    """Return the offset in a cursor.

    Raises:
        Problem: An invalid cursor, or one of another query or of a replaced coreset.
    """
    if cursor is None:
        return 0
    try:
        raw = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        offset, query_digest = json.loads(raw)
        valid = isinstance(offset, int) and not isinstance(offset, bool) and 0 <= offset < 2**40
    except (ValueError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise bad_request("invalid cursor: use the value of `next` of the previous page.")
    if query_digest != digest:
        raise Problem(
            409,
            "stale-cursor",
            "the cursor belongs to other parameters, or the coreset was replaced: start again at "
            "the first page.",
        )
    return int(offset)


class SampleFinder:
    """Finds the rows that a query asks for and caches the latest answers. Thread-safe."""

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._size = 0
        self._lock = threading.Lock()

    def find(self, coreset: Coreset, query: SampleQuery) -> np.ndarray:
        """Return the positions of all samples that match a query, in its order (uint32)."""
        key = query.digest(coreset)
        found = self._cached(key)
        if found is None:
            found = self._answer(coreset, query)
            self._store(key, found)
        return found

    def first(self, coreset: Coreset, query: SampleQuery, count: int) -> tuple[np.ndarray, int]:
        """Find the first samples that match a query without sorting the others.

        Returns:
            Positions of the first ``count``, or of all where there are fewer, and how many there
            are in all.
        """
        found = self._cached(query.digest(coreset))
        name, descending = query.sort.removeprefix("-"), query.sort.startswith("-")
        if found is None and name != "image_id":
            kept = self._filtered(coreset, query)
            if kept is not None and len(kept) <= DENSE * len(coreset):
                return kept[_first(coreset.column(name)[kept], descending, count)], len(kept)
            if kept is not None:
                order = self._whole_order(coreset, name, descending)
                return _first_kept(order, kept, count), len(kept)
        found = self.find(coreset, query) if found is None else found
        return found[:count], len(found)

    def whole(self, coreset: Coreset, query: SampleQuery, count: int) -> tuple[np.ndarray, int]:
        """The same as :meth:`first`, from all positions in order, which are kept."""
        found = self.find(coreset, query)
        return found[:count], len(found)

    def _filtered(self, coreset: Coreset, query: SampleQuery) -> np.ndarray | None:
        """The positions that pass the filters, in their own order; kept for other sorts."""
        key = replace(query, sort="").digest(coreset)
        kept = self._cached(key)
        if kept is None:
            kept = filtered(coreset, query)
            if kept is not None:
                self._store(key, kept)
        return kept

    def _answer(self, coreset: Coreset, query: SampleQuery) -> np.ndarray:
        name = query.sort.removeprefix("-")
        descending = query.sort.startswith("-")
        kept = self._filtered(coreset, query)
        found: np.ndarray
        if name == "image_id":
            positions = np.arange(len(coreset), dtype=np.uint32) if kept is None else kept
            return positions[::-1] if descending else positions
        if kept is not None and len(kept) <= DENSE * len(coreset):
            found = kept[_order(coreset.column(name)[kept], descending)]
            return found
        order = self._whole_order(coreset, name, descending)
        if kept is None:
            return order
        mask = np.zeros(len(coreset), dtype=bool)
        mask[kept] = True
        found = order[mask[order]]
        return found

    def _whole_order(self, coreset: Coreset, name: str, descending: bool) -> np.ndarray:
        key = f"order {coreset.entry.table.digest} {name} {descending}"
        order = self._cached(key)
        if order is None:
            order = _order(coreset.column(name), descending).astype(np.uint32)
            self._store(key, order)
        return order

    def _cached(self, key: str) -> np.ndarray | None:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
            return self._cache.get(key)

    def _store(self, key: str, found: np.ndarray) -> None:
        with self._lock:
            if key in self._cache or found.nbytes > self._cache_bytes:
                return
            self._cache[key] = found
            self._size += found.nbytes
            while self._size > self._cache_bytes:
                _, oldest = self._cache.popitem(last=False)
                self._size -= oldest.nbytes


def filtered(coreset: Coreset, query: SampleQuery) -> np.ndarray | None:
    """Return the positions that pass a query's filters, ascending (uint32); None for all rows."""
    import pyarrow.compute as pc

    kept = _start(coreset, query)

    def narrow(mask: np.ndarray) -> None:
        nonlocal kept
        kept = np.flatnonzero(mask).astype(np.uint32) if kept is None else kept[mask]

    def at(values: np.ndarray) -> np.ndarray:
        return values if kept is None else values[kept]

    if query.selected != "any" and query.cluster:
        narrow(at(coreset.selected) == (query.selected == "true"))
    for name in CATEGORIES:
        wanted = getattr(query, name)
        if wanted:
            indices, values = coreset.category(name)
            known = [code for code, value in enumerate(values) if value in wanted]
            narrow(_any_of(at(indices), known))
    for name, bound in query.least:
        narrow(at(coreset.column(name)) >= bound)
    for name, bound in query.most:
        narrow(at(coreset.column(name)) <= bound)
    if query.group_id:
        wanted_groups = pa.array(query.group_id, pa.large_string())
        narrow(numbers(pc.is_in(_texts(coreset, "group_id", kept), wanted_groups)))
    if query.source:
        found = pc.match_substring(_texts(coreset, "source", kept), query.source)
        narrow(numbers(pc.fill_null(found, False)))
    return kept


def _start(coreset: Coreset, query: SampleQuery) -> np.ndarray | None:
    """The cheapest exact start: the clusters' members, or the selected rows, or all."""
    if query.cluster:
        members = [coreset.members(cluster) for cluster in sorted(set(query.cluster))]
        found = [rows for rows in members if rows is not None]
        return np.sort(np.concatenate([*found, np.empty(0, dtype=np.uint32)]))
    if query.selected == "true":
        return coreset.selected_positions
    if query.selected == "false":
        return np.flatnonzero(~coreset.selected).astype(np.uint32)
    return None


def _any_of(indices: np.ndarray, wanted: list[int]) -> np.ndarray:
    found: np.ndarray = indices == wanted[0] if len(wanted) == 1 else np.isin(indices, wanted)
    return found


def _texts(coreset: Coreset, name: str, kept: np.ndarray | None) -> pa.ChunkedArray:
    column = coreset.catalogue.table[name]
    if kept is not None:
        return column.take(pa.array(coreset.rows[kept]))
    return column if coreset.aligned else column.take(pa.array(coreset.rows))


def _order(values: np.ndarray, descending: bool) -> np.ndarray:
    """Stable order: ties are sorted by id; NaN comes last in both directions."""
    return np.argsort(-values.astype(np.float64) if descending else values, kind="stable")


def _first(values: np.ndarray, descending: bool, count: int) -> np.ndarray:
    """The first ``count`` of :func:`_order`."""
    if len(values) <= 4 * count:
        return _order(values, descending)[:count]
    keys = -values.astype(np.float64) if descending else values
    last = np.partition(keys, count - 1)[count - 1]
    # All that come before the last, and its ties; NaN, which comes last, is no less than anything.
    among = np.flatnonzero(keys <= last) if last == last else np.arange(len(keys))
    found: np.ndarray = among[np.argsort(keys[among], kind="stable")[:count]]
    return found


def _first_kept(order: np.ndarray, kept: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` of an order of all positions that are among those kept."""
    mask = np.zeros(len(order), dtype=bool)
    mask[kept] = True
    pieces: list[np.ndarray] = []
    start, size, wanted = 0, 16 * count, min(count, len(kept))
    while wanted > 0:
        block = order[start : start + size]
        piece = block[mask[block]][:wanted]
        pieces.append(piece)
        wanted -= len(piece)
        start, size = start + size, 2 * size
    return np.concatenate([*pieces, order[:0]])


def page(
    coreset: Coreset, finder: SampleFinder, query: SampleQuery, limit: int, cursor: str | None
) -> dict[str, Any]:
    """Return one page of samples: items, total, and the cursor of the next page."""
    digest = query.digest(coreset)
    offset = read_cursor(cursor, digest)
    # Who asks for a second page is likely to ask for more: those are of a whole that is kept.
    find = finder.first if offset == 0 else finder.whole
    found, total = find(coreset, query, offset + limit)
    more = offset + limit < total
    return {
        "items": coreset.samples(found[offset:]),
        "total": total,
        "next": write_cursor(offset + limit, digest) if more else None,
    }
