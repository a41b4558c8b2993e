"""The map: a place in the plane for every image, computed once, so that likes lie together.

t-SNE on a few thousand landmarks keeps neighbourhoods but costs too much for millions; the others
take the weighted mean of their nearest landmarks' places, moved by the part of their features that
those landmarks do not explain, so that they spread instead of piling up.
"""

import math
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa

from echostill.curation.service.data.neighbours import Report, unit_features, unit_rows
from echostill.platform.seeding import stream
from echostill.platform.tables.atomic import atomic_write
from echostill.platform.tables.table import Table

LANDMARKS = 4000
COMPONENTS = 50  # what t-SNE looks at; more is noise
PERPLEXITY = 30.0
NEAREST = 4
SPREAD = 0.5  # of the distance to the neighbouring landmark, at most
FEWEST = 10  # t-SNE on fewer has nothing to do


def build_map(scores: Table, rows: np.ndarray, size: int, path: Path, report: Report) -> None:
    """Project the features of a scores table and write (size, 2) float32 in [-1, 1].

    Args:
        scores: the scores.
        rows: (N,) row number in the catalogue of each scored image, in the table's order.
        size: rows of the catalogue; those without scores become NaN.
        path: of the file.
        report: told stage and fraction.
    """
    report("landmarks", 0.0)
    sample = _landmarks(scores)
    mean = sample.mean(axis=0)
    _, _, axes = np.linalg.svd(sample - mean, full_matrices=False)
    axes = np.ascontiguousarray(axes[:COMPONENTS].T)
    reduced = np.ascontiguousarray((sample - mean) @ axes, dtype=np.float32)
    report("projecting", 0.1)
    placed = _placed(reduced)
    tree = faiss.IndexFlatL2(reduced.shape[1])
    tree.add(reduced)
    scale = _spacing(placed)

    places = np.full((size, 2), np.nan, dtype=np.float32)
    done = 0
    for block in unit_features(scores):
        seen = np.ascontiguousarray((block - mean) @ axes, dtype=np.float32)
        places[rows[done : done + len(block)]] = _between(seen, tree, reduced, placed, scale)
        done += len(block)
        report("placing", 0.6 + 0.4 * done / len(rows))
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.save(file, _fitted(places))


def _landmarks(scores: Table) -> np.ndarray:
    drawn = []
    for number, part in enumerate(scores.manifest["parts"]):
        count = min(part["rows"], math.ceil(LANDMARKS * part["rows"] / scores.rows))
        if count == 0:
            continue
        order = stream(0, "map", number).permutation(part["rows"])
        column = scores.read_part(part["file"], ["feature"])["feature"]
        drawn.append(unit_rows(column.take(pa.array(np.sort(order[:count])))))
    sample = np.concatenate(drawn)
    return sample[np.linspace(0, len(sample) - 1, min(LANDMARKS, len(sample))).astype(int)]


def _placed(reduced: np.ndarray) -> np.ndarray:
    """(L, 2) places of the landmarks."""
    if len(reduced) < FEWEST or reduced.shape[1] < 2:
        flat = np.zeros((len(reduced), 2))
        flat[:, : min(2, reduced.shape[1])] = reduced[:, :2]
        return flat
    from sklearn.manifold import TSNE  # a second to load, needed once per pool

    spread = np.std(reduced[:, 0]) or 1.0
    method = TSNE(
        n_components=2,
        perplexity=min(PERPLEXITY, (len(reduced) - 1) / 3),
        init=np.ascontiguousarray(reduced[:, :2] / spread * 1e-4),
        random_state=0,
        n_jobs=1,
    )
    return np.asarray(method.fit_transform(reduced), dtype=np.float64)


def _spacing(placed: np.ndarray) -> np.ndarray:
    """(L,) distance of each landmark to its nearest fellow in the plane."""
    plane = np.ascontiguousarray(placed, dtype=np.float32)
    tree = faiss.IndexFlatL2(2)
    tree.add(plane)
    squared, _ = tree.search(plane, min(2, len(plane)))
    return np.sqrt(np.maximum(squared[:, -1], 0))


def _between(
    seen: np.ndarray,
    tree: faiss.IndexFlatL2,
    reduced: np.ndarray,
    placed: np.ndarray,
    scale: np.ndarray,
) -> np.ndarray:
    """Place images (n, C) among the landmarks, (n, 2)."""
    squared, near = tree.search(seen, min(NEAREST, len(reduced)))
    closest = squared[:, :1]
    weight = 1 / (np.maximum(squared, 0) + 0.05 * closest + 1e-9)
    weight /= weight.sum(axis=1, keepdims=True)
    place = np.einsum("nk,nkd->nd", weight, placed[near])
    rest = (seen - np.einsum("nk,nkc->nc", weight, reduced[near]))[:, :2]
    if rest.shape[1] < 2:
        return place
    length = np.sqrt(np.maximum(squared[:, -1:], 1e-12))
    offset = rest / length
    offset /= np.maximum(1.0, np.linalg.norm(offset, axis=1, keepdims=True))
    return place + SPREAD * scale[near[:, :1]] * offset


def _fitted(places: np.ndarray) -> np.ndarray:
    """Scale both axes alike into [-1, 1]."""
    low, high = np.nanmin(places, axis=0), np.nanmax(places, axis=0)
    width = float((high - low).max()) or 1.0
    return ((places - (low + high) / 2) * (2 / width)).astype(np.float32)
