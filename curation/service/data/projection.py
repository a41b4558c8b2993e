"""The map: two coordinates for every image, computed once, with similar images close together.

t-SNE preserves neighbourhoods but costs too much for millions of images, so it embeds a few
thousand landmarks. Every other image gets the weighted mean of its nearest landmarks' coordinates,
moved by the part of its feature that they do not explain, so that images do not pile up.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from echostill.curation.service.data.neighbours import Report, unit_features, unit_rows
from echostill.platform.seeding import stream
from echostill.platform.tables.atomic import atomic_write
from echostill.platform.tables.table import Table

if TYPE_CHECKING:
    import faiss

LANDMARKS = 4000
COMPONENTS = 50  # input dimensions of t-SNE; more is noise
PERPLEXITY = 30.0
NEAREST = 4
SPREAD = 0.5  # of the distance to the neighbouring landmark, at most
FEWEST = 10  # images for t-SNE; fewer are placed by their principal components


def build_map(scores: Table, rows: np.ndarray, size: int, path: Path, report: Report) -> None:
    """Project the features of a scores table and write (size, 2) float32 in [-1, 1].

    Args:
        scores: the scores.
        rows: (N,) row number in the catalogue of each scored image, in the table's order.
        size: rows of the catalogue; those without scores become NaN.
        path: of the file.
        report: called with stage and fraction.
    """
    import faiss

    report("landmarks", 0.0)
    sample = _landmarks(scores)
    mean = sample.mean(axis=0)
    _, _, axes = np.linalg.svd(sample - mean, full_matrices=False)
    axes = np.ascontiguousarray(axes[:COMPONENTS].T)
    reduced = np.ascontiguousarray((sample - mean) @ axes, dtype=np.float32)
    report("projecting", 0.1)
    embedded = _embedded(reduced)
    tree = faiss.IndexFlatL2(reduced.shape[1])
    tree.add(reduced)
    scale = _spacing(embedded)

    coordinates = np.full((size, 2), np.nan, dtype=np.float32)
    done = 0
    for block in unit_features(scores):
        projected = np.ascontiguousarray((block - mean) @ axes, dtype=np.float32)
        own = rows[done : done + len(block)]
        coordinates[own] = _interpolated(projected, tree, reduced, embedded, scale)
        done += len(block)
        report("interpolating", 0.6 + 0.4 * done / len(rows))
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.save(file, _scaled(coordinates))


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
    landmarks: np.ndarray = sample[
        np.linspace(0, len(sample) - 1, min(LANDMARKS, len(sample))).astype(int)
    ]
    return landmarks


def _embedded(reduced: np.ndarray) -> np.ndarray:
    """(L, 2) coordinates of the landmarks."""
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


def _spacing(embedded: np.ndarray) -> np.ndarray:
    """(L,) distance in the plane from each landmark to the nearest other one."""
    import faiss

    plane = np.ascontiguousarray(embedded, dtype=np.float32)
    tree = faiss.IndexFlatL2(2)
    tree.add(plane)
    squared, _ = tree.search(plane, min(2, len(plane)))
    return np.sqrt(np.maximum(squared[:, -1], 0))


def _interpolated(
    projected: np.ndarray,
    tree: "faiss.IndexFlatL2",
    reduced: np.ndarray,
    embedded: np.ndarray,
    scale: np.ndarray,
) -> np.ndarray:
    """Coordinates (n, 2) of images (n, C), from those of their nearest landmarks."""
    squared, near = tree.search(projected, min(NEAREST, len(reduced)))
    closest = squared[:, :1]
    weight = 1 / (np.maximum(squared, 0) + 0.05 * closest + 1e-9)
    weight /= weight.sum(axis=1, keepdims=True)
    mean: np.ndarray = np.einsum("nk,nkd->nd", weight, embedded[near])
    rest = (projected - np.einsum("nk,nkc->nc", weight, reduced[near]))[:, :2]
    if rest.shape[1] < 2:
        return mean
    length = np.sqrt(np.maximum(squared[:, -1:], 1e-12))
    offset = rest / length
    offset /= np.maximum(1.0, np.linalg.norm(offset, axis=1, keepdims=True))
    placed: np.ndarray = mean + SPREAD * scale[near[:, :1]] * offset
    return placed


def _scaled(coordinates: np.ndarray) -> np.ndarray:
    """Scale both axes by the same factor into [-1, 1]."""
    low, high = np.nanmin(coordinates, axis=0), np.nanmax(coordinates, axis=0)
    width = float((high - low).max()) or 1.0
    scaled: np.ndarray = ((coordinates - (low + high) / 2) * (2 / width)).astype(np.float32)
    return scaled
