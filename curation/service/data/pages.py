"""Filters, order and pages of a coreset's samples."""

import base64
import hashlib
import json
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
SORTS = ("image_id", *NUMBERS)
KEPT_BYTES = 256 * 2**20  # of answers to filters; 3M rows are 12 MB
DENSE = 0.1  # above this share of the rows, walking the whole order beats sorting what was kept


@dataclass(frozen=True)
class Question:
    """Which samples, in which order.

    Attributes:
        selected: ``true``, ``false`` or ``any``.
        organ, device, label, group_id: any of these, where there are some.
        cluster: any of these.
        source: text that the source contains.
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
        """A name of the answer: the question and the coreset's content."""
        text = json.dumps([coreset.entry.table.digest, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def bounds(texts: list[str]) -> tuple[tuple[str, float], ...]:
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
            raise bad_request(f"'{text}' is not of the form column:number.")
        found.append((name, number))
    return tuple(found)


def check_sort(sort: str, valid: tuple[str, ...] = SORTS) -> str:
    """Return a sort that is valid.

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
    """Name the place where the next page begins."""
    return base64.urlsafe_b64encode(json.dumps([offset, digest]).encode()).decode().rstrip("=")


def read_cursor(cursor: str | None, digest: str) -> int:
    """Return the offset that a cursor names.

    Raises:
        Problem: Not one of ours, or of another question or another state of the coreset.
    """
    if cursor is None:
        return 0
    try:
        raw = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        offset, made_for = json.loads(raw)
        valid = isinstance(offset, int) and not isinstance(offset, bool) and 0 <= offset < 2**40
    except (ValueError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise bad_request("this is not a cursor: take `next` of the page before.")
    if made_for != digest:
        raise Problem(
            409,
            "stale-cursor",
            "the cursor is of another question, or the coreset was replaced: begin at the first "
            "page.",
        )
    return int(offset)


class Finder:
    """Answers questions about coresets and keeps the latest answers; safe to share by threads."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._kept_bytes = kept_bytes
        self._size = 0
        self._lock = threading.Lock()

    def find(self, coreset: Coreset, question: Question) -> np.ndarray:
        """Return the positions of all samples that a question asks for, in its order (uint32)."""
        key = question.digest(coreset)
        found = self._recall(key)
        if found is None:
            found = self._answer(coreset, question)
            self._keep(key, found)
        return found

    def _answer(self, coreset: Coreset, question: Question) -> np.ndarray:
        name = question.sort.removeprefix("-")
        descending = question.sort.startswith("-")
        kept = filtered(coreset, question)
        if name == "image_id":
            positions = np.arange(len(coreset), dtype=np.uint32) if kept is None else kept
            return positions[::-1] if descending else positions
        if kept is not None and len(kept) <= DENSE * len(coreset):
            return kept[_order(coreset.column(name)[kept], descending)]
        order = self._whole_order(coreset, name, descending)
        if kept is None:
            return order
        mask = np.zeros(len(coreset), dtype=bool)
        mask[kept] = True
        return order[mask[order]]

    def _whole_order(self, coreset: Coreset, name: str, descending: bool) -> np.ndarray:
        key = f"order {coreset.entry.table.digest} {name} {descending}"
        order = self._recall(key)
        if order is None:
            order = _order(coreset.column(name), descending).astype(np.uint32)
            self._keep(key, order)
        return order

    def _recall(self, key: str) -> np.ndarray | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _keep(self, key: str, found: np.ndarray) -> None:
        with self._lock:
            if key in self._kept or found.nbytes > self._kept_bytes:
                return
            self._kept[key] = found
            self._size += found.nbytes
            while self._size > self._kept_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._size -= oldest.nbytes


def filtered(coreset: Coreset, question: Question) -> np.ndarray | None:
    """Return the positions that pass a question's filters, ascending (uint32); None for all."""
    kept = _start(coreset, question)

    def narrow(mask: np.ndarray) -> None:
        nonlocal kept
        kept = np.flatnonzero(mask).astype(np.uint32) if kept is None else kept[mask]

    def at(values: np.ndarray) -> np.ndarray:
        return values if kept is None else values[kept]

    if question.selected != "any" and question.cluster:
        narrow(at(coreset.selected) == (question.selected == "true"))
    for name in CATEGORIES:
        wanted = getattr(question, name)
        if wanted:
            places, values = coreset.category(name)
            known = [code for code, value in enumerate(values) if value in wanted]
            narrow(_any_of(at(places), known))
    for name, bound in question.least:
        narrow(at(coreset.column(name)) >= bound)
    for name, bound in question.most:
        narrow(at(coreset.column(name)) <= bound)
    if question.group_id:
        wanted_groups = pa.array(question.group_id, pa.large_string())
        narrow(numbers(pc.is_in(_texts(coreset, "group_id", kept), wanted_groups)))
    if question.source:
        found = pc.match_substring(_texts(coreset, "source", kept), question.source)
        narrow(numbers(pc.fill_null(found, False)))
    return kept


def _start(coreset: Coreset, question: Question) -> np.ndarray | None:
    """The cheapest exact beginning: the clusters' members, or the chosen rows, or all."""
    if question.cluster:
        members = [coreset.members(cluster) for cluster in sorted(set(question.cluster))]
        found = [rows for rows in members if rows is not None]
        return np.sort(np.concatenate([*found, np.empty(0, dtype=np.uint32)]))
    if question.selected == "true":
        return coreset.selected_positions
    if question.selected == "false":
        return np.flatnonzero(~coreset.selected).astype(np.uint32)
    return None


def _any_of(places: np.ndarray, wanted: list[int]) -> np.ndarray:
    if len(wanted) == 1:
        return places == wanted[0]
    return np.isin(places, wanted)


def _texts(coreset: Coreset, name: str, kept: np.ndarray | None) -> pa.ChunkedArray:
    column = coreset.catalogue.table[name]
    if kept is not None:
        return column.take(pa.array(coreset.rows[kept]))
    return column if coreset.aligned else column.take(pa.array(coreset.rows))


def _order(values: np.ndarray, descending: bool) -> np.ndarray:
    """Stable order: ties stay in the order of ids; NaN comes last either way."""
    return np.argsort(-values.astype(np.float64) if descending else values, kind="stable")


def page(
    coreset: Coreset, finder: Finder, question: Question, limit: int, cursor: str | None
) -> dict[str, Any]:
    """Return one page of samples: items, total, and the cursor of the next page."""
    digest = question.digest(coreset)
    offset = read_cursor(cursor, digest)
    found = finder.find(coreset, question)
    positions = found[offset : offset + limit]
    more = offset + limit < len(found)
    return {
        "items": coreset.samples(positions),
        "total": len(found),
        "next": write_cursor(offset + limit, digest) if more else None,
    }
