"""Crops: an image that shows a part of another one, found by a second look at the pictures.

A crop of a twentieth moves every low frequency, so that hashes no longer agree. Thumbnails still
do if one is first zoomed in a little: six views of every thumbnail (the whole, nine tenths of it in
the middle and in the corners) are looked up among all thumbnails, and each view's nearest are
candidates. A candidate is then aligned: the box of the one picture that shows the other is refined
by Gauss-Newton steps on the difference of brightness (Lucas and Kanade 1981), with a gain and an
offset, first on squares of 32 pixels and, where these agree, of 96. The correlation of the aligned
pictures decides.

For N images this costs 6 N searches among the nearest cells of an index, one decoding of every
image and a second one of those that agree; it never compares all pairs.
"""

from collections.abc import Callable, Iterator

import faiss
import numpy as np
from PIL import Image

from echostill.curation.ingestion.perceptual import THUMBNAIL_SIDE, thumbnail_correlation
from echostill.curation.selection.kmeans import flat_index, train_centroids

ZOOM = 0.9  # a view's share of each side; a crop of 5 to 15% is within reach of the alignment
VIEWS = ((0.0, 0.0, 1.0), *((x, y, ZOOM) for x, y in ((0.05, 0.05), (0, 0), (0.1, 0), (0, 0.1))))
VIEWS = (*VIEWS, (0.1, 0.1, ZOOM))  # left, top and side, in shares of the thumbnail's side
NEAREST = 8  # candidates of a view
LEAST_COSINE = 0.6  # of a view and a candidate's thumbnail
COARSE, FINE = 32, 96  # pixels of the squares that are aligned
COARSE_STEPS, FINE_STEPS = 8, 6
COARSE_CORRELATION = 0.85
LIMITS = (0.7, 1.1)  # of a box's sides
SLACK = 0.02  # of a side, by which a box may stand out
FLAT = 20_000  # up to this many images all thumbnails are searched; beyond, the nearest cells
CELLS_SEARCHED = 4
PAIRS_AT_ONCE = 256


def crop_pairs(
    thumbnails: np.ndarray,
    labels: np.ndarray,
    squares: Callable[[np.ndarray, int], np.ndarray],
    correlation: float,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Find pairs of rows of which one shows a part of the other.

    Args:
        thumbnails: (N, 256) uint8, of the whole picture.
        labels: (N,) integers. Rows with the same label are not compared with each other.
        squares: returns the pictures of some rows (sorted, unique), shrunk to squares of so many
            pixels, (R, n, n) uint8.
        correlation: smallest correlation of the aligned pictures.
        seed: of the index's cells.

    Returns:
        Rows i < j, (P,) int64 each, sorted, each pair once.
    """
    whole, part, view = _candidates(thumbnails, labels, seed)
    boxes = np.array([(x, y, side, side) for x, y, side in VIEWS], dtype=np.float32)[view]
    for size, steps, least in (
        (COARSE, COARSE_STEPS, COARSE_CORRELATION),
        (FINE, FINE_STEPS, correlation),
    ):
        if not len(whole):
            break
        kept = np.empty(len(whole), dtype=bool)
        rows = np.unique(np.concatenate([whole, part]))
        pictures = squares(rows, size)
        for start in range(0, len(whole), PAIRS_AT_ONCE):
            some = slice(start, start + PAIRS_AT_ONCE)
            one, other = (
                pictures[np.searchsorted(rows, side[some])].astype(np.float32)
                for side in (whole, part)
            )
            boxes[some] = align(one, other, boxes[some], steps)
            shown = np.clip(np.rint(crop(one, boxes[some], size)), 0, 255).astype(np.uint8)
            flat = (picture.reshape(len(one), -1) for picture in (shown, other.astype(np.uint8)))
            kept[some] = thumbnail_correlation(*flat) >= least
        whole, part, boxes = whole[kept], part[kept], boxes[kept]
    low, high = boxes[:, :2].min(axis=1), (boxes[:, :2] + boxes[:, 2:]).max(axis=1)
    inside = (low > -SLACK) & (high < 1 + SLACK)
    pairs = np.sort(np.stack([whole[inside], part[inside]], axis=1), axis=1)
    pairs = np.unique(pairs, axis=0).astype(np.int64)
    return pairs[:, 0], pairs[:, 1]


def align(whole: np.ndarray, part: np.ndarray, box: np.ndarray, steps: int) -> np.ndarray:
    """Refine the boxes of pictures that show other pictures.

    Args:
        whole: (P, n, n) float32.
        part: (P, n, n) float32.
        box: (P, 4) float32: left, top, width and height, in shares of the side.
        steps: of Gauss-Newton.

    Returns:
        (P, 4) float32.
    """
    size = part.shape[1]
    off = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    for _ in range(steps):
        shown = crop(whole, box, size)
        down, right = np.gradient(shown, np.float32(1.0 / size), axis=(1, 2))
        columns = (
            right,
            right * off,
            down,
            down * off[:, None],
            shown,
            np.ones_like(shown),
        )
        jacobian = np.stack([column.reshape(len(shown), -1) for column in columns], axis=2)
        transposed = jacobian.transpose(0, 2, 1)
        hessian = transposed @ jacobian
        damping = np.trace(hessian, axis1=1, axis2=2)[:, None, None] * np.float32(1e-6)
        hessian += (damping + np.float32(1e-3)) * np.eye(6, dtype=np.float32)
        error = (part - shown).reshape(len(shown), -1, 1)
        step = np.clip(np.linalg.solve(hessian, transposed @ error)[:, :4, 0], -0.1, 0.1)
        middle = box[:, :2] + box[:, 2:] / 2 + step[:, [0, 2]] * box[:, 2:]
        side = np.clip(box[:, 2:] * (1 + step[:, [1, 3]]), *LIMITS)
        box = np.concatenate([middle - side / 2, side], axis=1).astype(np.float32)
    return box


def crop(pictures: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """Cut boxes out of pictures (P, n, n), bilinear, (P, size, size); edges are continued."""
    rows = _weights(box[:, 1], box[:, 3], pictures.shape[1], size)
    columns = _weights(box[:, 0], box[:, 2], pictures.shape[2], size)
    cut: np.ndarray = rows @ pictures @ columns.transpose(0, 2, 1)
    return cut


def _weights(start: np.ndarray, side: np.ndarray, count: int, size: int) -> np.ndarray:
    """Weights of ``count`` pixels in each of ``size`` pixels of a run, (P, size, count)."""
    at = (start[:, None] + side[:, None] * (np.arange(size) + 0.5) / size) * count - 0.5
    away = np.abs(np.clip(at, 0, count - 1)[:, :, None] - np.arange(count))
    weights: np.ndarray = np.maximum(0.0, 1.0 - away).astype(np.float32)
    return weights


def _candidates(
    thumbnails: np.ndarray, labels: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, rows that may be parts of them, and the most similar view, (C,) each."""
    index = _index(_unit(thumbnails), seed)
    found: dict[str, list[np.ndarray]] = {"pair": [], "cosine": [], "view": []}
    rows = np.arange(len(thumbnails))
    for number, view in enumerate(VIEWS):
        for start in range(0, len(rows), 65_536):
            some = rows[start : start + 65_536]
            zoomed = np.stack(list(_zoomed(thumbnails[some], view))) if len(some) else None
            if zoomed is None:
                continue
            cosine, near = index.search(_unit(zoomed), min(NEAREST + 1, len(rows)))
            one = np.repeat(some, near.shape[1])
            other, value = near.ravel(), cosine.ravel()
            good = (other >= 0) & (value >= LEAST_COSINE)
            good[good] &= labels[one[good]] != labels[other[good]]
            found["pair"].append(one[good] * len(rows) + other[good])
            found["cosine"].append(value[good])
            found["view"].append(np.full(int(good.sum()), number))
    if not found["pair"]:
        none = np.empty(0, dtype=np.int64)
        return none, none, none
    pair, cosine, view_of = (np.concatenate(found[name]) for name in ("pair", "cosine", "view"))
    order = np.lexsort((view_of, -cosine, pair))
    pair, first = np.unique(pair[order], return_index=True)
    return pair // len(rows), pair % len(rows), view_of[order][first]


def _zoomed(thumbnails: np.ndarray, view: tuple[float, float, float]) -> Iterator[np.ndarray]:
    side = THUMBNAIL_SIDE
    left, top, share = (value * side for value in view)
    box = (left, top, left + share, top + share)
    for thumbnail in thumbnails.reshape(-1, side, side):
        zoomed = Image.fromarray(thumbnail).resize((side, side), Image.Resampling.BILINEAR, box)
        yield np.asarray(zoomed).reshape(-1)


def _unit(thumbnails: np.ndarray) -> np.ndarray:
    moved = thumbnails.astype(np.float32)
    moved -= moved.mean(axis=1, keepdims=True)
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    unit: np.ndarray = np.divide(moved, length, out=np.zeros_like(moved), where=length > 0)
    return unit


def _index(unit: np.ndarray, seed: int) -> faiss.Index:
    if len(unit) <= FLAT:
        flat: faiss.Index = flat_index(unit)
        return flat
    cells = round(len(unit) ** 0.5)
    sample = unit[:: max(1, len(unit) // (64 * cells))]
    centroids = train_centroids(sample, cells, iterations=10, seed=seed)
    index = faiss.IndexIVFFlat(
        flat_index(centroids), unit.shape[1], cells, faiss.METRIC_INNER_PRODUCT
    )
    index.train(sample)  # the cells are given: this only marks it as ready
    index.add(unit)
    index.nprobe = CELLS_SEARCHED
    return index
