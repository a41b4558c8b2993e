"""Which of some images look alike, without a store: equal pixels, or near copies."""

import numpy as np
import pyarrow as pa
from scipy import sparse

from echostill.curation.copies.groups import EXACT, Links, exact_classes
from echostill.curation.copies.near import NearSettings, near_links
from echostill.curation.deidentification.brightness import Brightness
from echostill.curation.ingestion.perceptual import (
    as_hashes,
    as_thumbnails,
    perceptual_columns,
)
from echostill.platform.imaging.images import content_hash, drop_equal_channels


class LookAlikes:
    """Images that are added one by one; of each, some hundred bytes are kept."""

    def __init__(self, settings: NearSettings | None = None) -> None:
        """Start without images.

        Args:
            settings: What counts as a near copy; the defaults are those of ``duplicates``.
        """
        self._settings = settings or NearSettings()
        self._digests: list[str] = []
        self._columns: dict[str, list[bytes]] = {"perceptual_hash": [], "thumbnail": []}

    def add(self, pixels: np.ndarray) -> None:
        """Take the next image, uint8 (H, W) or (H, W, 3)."""
        shown = drop_equal_channels(pixels)
        self._digests.append(content_hash(shown))
        for name, value in perceptual_columns(Brightness(shown)).items():
            self._columns[name].append(value)

    def components(self) -> np.ndarray:
        """Return a number for each image, (N,) int64: equal for images linked to each other."""
        count = len(self._digests)
        if not count:
            return np.empty(0, dtype=np.int64)
        first = exact_classes(np.array(self._digests), np.arange(count))
        copies = np.flatnonzero(first != np.arange(count))
        hashes = as_hashes(_column(self._columns["perceptual_hash"], 64))
        thumbnails = as_thumbnails(_column(self._columns["thumbnail"], 512))
        near = near_links(hashes, first, lambda rows: thumbnails[rows], self._settings)
        links = Links.joined([Links.of(first[copies], copies, EXACT), near])
        edges = (np.ones(len(links.first), dtype=bool), (links.first, links.second))
        graph = sparse.coo_matrix(edges, shape=(count, count))
        number: np.ndarray = sparse.csgraph.connected_components(graph, directed=False)[1]
        return number.astype(np.int64)


def _column(values: list[bytes], width: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.binary(width))])
