"""The neighbour index: FAISS lists of 8-bit features, mapped, with a measured recall.

Inverted lists with scalar quantisation: 3M x 768 take 2.3 GB in place of 9.2 GB as float32. How
many lists a search visits is calibrated: while the index is filled, sampled queries are compared
with every feature exactly, and the smallest number that finds enough of their true neighbours is
kept.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from echostill.platform.tables.table import Table

if TYPE_CHECKING:
    import faiss

INDEX_FILE = "neighbours.faiss"
ADDRESS_FILE = "addresses.npy"
DESCRIPTION_FILE = "neighbours.json"

ONE_LIST_BELOW = 20_000  # rows; searching all of them takes two milliseconds
LISTS_MAX = 4096
TRAINING_ROWS_PER_LIST = 64
QUERIES = 256
TARGET_RECALL = 0.98  # on the sampled queries, so that others stay above 0.95
COMPARED = 10  # neighbours per sampled query
ROWS_PER_BATCH = 16384
NO_ADDRESS = -1
LIST_BITS = 32

Report = Callable[[str, float], None]


def list_count(rows: int) -> int:
    """Number of inverted lists: about 2.4 sqrt(rows), a power of two, at most 4096."""
    if rows < ONE_LIST_BELOW:
        return 1
    return int(min(LISTS_MAX, 2 ** round(math.log2(2.4 * math.sqrt(rows)))))


def build_neighbours(scores: Table, rows: np.ndarray, folder: Path, report: Report) -> None:
    """Build the index of a scores table and write it into a folder.

    Args:
        scores: the scores; ``feature`` is read part by part.
        rows: (N,) row number in the catalogue of each scored image, in the table's order.
        folder: exists and is empty; the caller renames it when this returns.
        report: called with stage and fraction.
    """
    import faiss

    from echostill.curation.selection.features import TableFeatures

    dimension = TableFeatures(scores).dimension
    lists = list_count(len(rows))
    sample, queries = _samples(scores, lists, report)
    # The lists' centres are found by inner product, as the neighbours are.
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dimension),
        dimension,
        lists,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
        True,
    )
    index.cp.niter, index.cp.seed, index.cp.spherical = 10, 0, True
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = TRAINING_ROWS_PER_LIST
    report("training", 0.1)
    index.train(sample)
    del sample

    truth = ExactNeighbours(queries, COMPARED + 1)
    done = 0
    for block in unit_features(scores):
        numbers_ = rows[done : done + len(block)].astype(np.int64)
        index.add_with_ids(block, numbers_)
        truth.add(block, numbers_)
        done += len(block)
        report("adding", 0.3 + 0.6 * done / len(rows))
    report("measuring", 0.92)
    probes, recall = _calibrated(index, queries, truth)
    report("writing", 0.95)
    np.save(folder / ADDRESS_FILE, _addresses(index))
    faiss.write_index(index, str(folder / INDEX_FILE))
    description = {
        "rows": len(rows),
        "dimension": dimension,
        "lists": lists,
        "probes": probes,
        "recall_at_10": recall,
    }
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description))


class ExactNeighbours:
    """The true neighbours of some queries, updated with each block of features."""

    def __init__(self, queries: np.ndarray, count: int) -> None:
        self.queries = queries
        self.similarity = np.full((len(queries), count), -np.inf, dtype=np.float32)
        self.rows = np.full((len(queries), count), -1, dtype=np.int64)

    def add(self, block: np.ndarray, rows: np.ndarray) -> None:
        """Compare with a block of features (n, D), given their row numbers (n,)."""
        count = self.rows.shape[1]
        similarity = np.concatenate([self.similarity, self.queries @ block.T], axis=1)
        known = np.broadcast_to(rows, (len(self.queries), len(rows)))
        numbers_ = np.concatenate([self.rows, known], axis=1)
        best = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        self.similarity = np.take_along_axis(similarity, best, axis=1)
        self.rows = np.take_along_axis(numbers_, best, axis=1)


@dataclass(frozen=True)
class Neighbour:
    """A row of the catalogue and its cosine similarity to the query."""

    row: int
    similarity: float


class NeighbourIndex:
    """A mapped index. Searches may run in several threads; each takes one core."""

    def __init__(self, folder: Path) -> None:
        import faiss

        self.description: dict[str, Any] = json.loads((folder / DESCRIPTION_FILE).read_text())
        self._index: Any = faiss.read_index(str(folder / INDEX_FILE), faiss.IO_FLAG_MMAP)
        self._addresses = np.load(folder / ADDRESS_FILE, mmap_mode="r")
        self._of_all: Any = faiss.SearchParametersIVF()  # searches only read it
        self._of_all.nprobe = self.description["probes"]

    @property
    def dimension(self) -> int:
        """Length of a feature."""
        return int(self.description["dimension"])

    def vector(self, row: int) -> np.ndarray | None:
        """Return a row's feature as stored in the index, (D,) float32; None if it is not scored."""
        import faiss

        address = int(self._addresses[row]) if row < len(self._addresses) else NO_ADDRESS
        if address == NO_ADDRESS:
            return None
        found = np.empty(self.dimension, dtype=np.float32)
        offset = address & (2**LIST_BITS - 1)
        self._index.reconstruct_from_offset(address >> LIST_BITS, offset, faiss.swig_ptr(found))
        return found

    def search(
        self, vector: np.ndarray, count: int, keep: np.ndarray | None = None
    ) -> list[Neighbour]:
        """Find the nearest rows by cosine.

        Args:
            vector: (D,) of any norm but zero.
            count: number of neighbours.
            keep: (ceil(N / 8),) uint8, a bit per row (lowest first), set for those that may be
                returned; None for all.

        Returns:
            At most ``count``, most similar first.
        """
        import faiss

        faiss.omp_set_num_threads(1)  # of this thread: many small searches run side by side
        unit = (vector / np.linalg.norm(vector)).astype(np.float32)[None]
        parameters: Any = self._of_all
        if keep is not None:
            parameters = faiss.SearchParametersIVF()
            parameters.nprobe = self.description["probes"]
            packed = np.ascontiguousarray(keep, dtype=np.uint8)  # outlives the search
            selector = faiss.IDSelectorBitmap(len(packed), faiss.swig_ptr(packed))
            parameters.sel = selector
        similarity, rows = self._index.search(unit, count, params=parameters)
        return [
            Neighbour(int(row), min(1.0, float(value)))
            for row, value in zip(rows[0], similarity[0], strict=True)
            if row >= 0
        ]


def bits(mask: np.ndarray) -> np.ndarray:
    """Pack a mask (N,) as :meth:`NeighbourIndex.search` takes it."""
    return np.packbits(mask, bitorder="little")


def unit_features(scores: Table) -> Iterator[np.ndarray]:
    """Yield blocks (n, D) of float32 unit features, in the table's order."""
    from echostill.curation.selection.features import TableFeatures, joined

    features = TableFeatures(scores)
    for piece in range(len(features.counts)):
        for block in joined(features.blocks(piece), ROWS_PER_BATCH):
            yield _of_unit_length(block)


def unit_rows(column: pa.ChunkedArray) -> np.ndarray:
    """Read a column of features as (n, D) float32 of unit length (zero stays zero)."""
    from echostill.curation.selection.features import ColumnFeatures, matrix_of

    return _of_unit_length(matrix_of(ColumnFeatures(column), np.arange(len(column))))


def _of_unit_length(rows: np.ndarray) -> np.ndarray:
    block = rows.astype(np.float32)
    length = np.linalg.norm(block, axis=1, keepdims=True)
    return np.ascontiguousarray(block / np.where(length > 0, length, 1))


def _samples(scores: Table, lists: int, report: Report) -> tuple[np.ndarray, np.ndarray]:
    """Draw training rows and queries from every part, in proportion to its rows."""
    from echostill.platform.seeding import stream

    wanted = max(lists * TRAINING_ROWS_PER_LIST, min(scores.rows, 4096))
    chosen, queries = [], []
    for number, part in enumerate(scores.manifest["parts"]):
        count = min(part["rows"], math.ceil(wanted * part["rows"] / scores.rows))
        few = min(part["rows"], math.ceil(QUERIES * part["rows"] / scores.rows))
        if count == 0:
            continue
        order = stream(0, "neighbour index", number).permutation(part["rows"])
        column = scores.read_part(part["file"], ["feature"])["feature"]
        chosen.append(unit_rows(column.take(pa.array(np.sort(order[:count])))))
        queries.append(unit_rows(column.take(pa.array(np.sort(order[-few:])))))
        report("sampling", 0.1 * (number + 1) / len(scores.manifest["parts"]))
    drawn = np.concatenate(queries)
    spread = np.linspace(0, len(drawn) - 1, min(QUERIES, len(drawn))).astype(int)
    return np.concatenate(chosen), drawn[spread]


def _calibrated(
    index: "faiss.IndexIVF", queries: np.ndarray, truth: ExactNeighbours
) -> tuple[int, float]:
    """Find the smallest power of two of lists with the target recall; return both."""
    probes, recall = 1, 0.0
    while True:
        index.nprobe = probes
        _, found = index.search(queries, truth.rows.shape[1])
        recall = recall_of(found, truth.rows)
        if recall >= TARGET_RECALL or probes >= index.nlist:
            return probes, round(recall, 4)
        probes *= 2


def recall_of(found: np.ndarray, true: np.ndarray) -> float:
    """Share of the true neighbours (Q, k) that were found (Q, k); -1 is none."""
    hits = sum(len(np.intersect1d(f, t[t >= 0])) for f, t in zip(found, true, strict=True))
    return hits / max(1, int((true >= 0).sum()))


def _addresses(index: "faiss.IndexIVF") -> np.ndarray:
    """(rows,) int64: list and offset in it of every row number, -1 if it is not in the index."""
    import faiss

    lists: Any = index.invlists
    members = []
    for number in range(index.nlist):
        size = lists.list_size(number)
        if size:
            members.append((number, faiss.rev_swig_ptr(lists.get_ids(number), size).copy()))
    last = max((int(ids.max()) for _, ids in members), default=-1)
    addresses = np.full(last + 1, NO_ADDRESS, dtype=np.int64)
    for number, ids in members:
        addresses[ids] = (number << LIST_BITS) + np.arange(len(ids))
    return addresses
