"""Near copies: the same image resized, re-encoded, slightly brighter, or with other borders.

Two views of every image are compared, the whole image and its sector. The first is stable if the
edge of the sector is faint, the second if borders were cropped or added. Close hashes make a pair a
candidate, and the thumbnails of that view decide.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field

from echostill.curation.copies.banding import GUARANTEED, close_pairs
from echostill.curation.copies.groups import NEAR, Links
from echostill.curation.ingestion.perceptual import (
    BITS,
    VIEWS,
    as_thumbnails,
    thumbnail_correlation,
)
from echostill.platform.config import Config
from echostill.platform.imaging.images import decode_staged, drop_equal_channels
from echostill.platform.tables.table import Table

PAIRS_PER_CHUNK = 100_000  # correlated at once, to limit memory to a few hundred megabytes


class NearSettings(Config):
    """When two images count as copies of each other."""

    near_distance: int | None = Field(
        24,
        ge=0,
        le=64,
        description=f"Bits of {BITS} that the perceptual hashes of two copies may differ in; null "
        f"looks for none. Every pair within {GUARANTEED} is found, and most beyond.",
    )
    near_correlation: float = Field(
        0.97, ge=0, le=1, description="Smallest correlation of their thumbnails."
    )


def near_links(
    hashes: np.ndarray,
    labels: np.ndarray,
    thumbnails: Callable[[np.ndarray], np.ndarray],
    settings: NearSettings,
) -> Links:
    """Link the rows that are near copies of each other.

    Args:
        hashes: (N, 2, 4) uint64, from
            :func:`echostill.curation.ingestion.perceptual.as_hashes`.
        labels: (N,) integers. Rows with the same label are not compared with each other.
        thumbnails: Returns the thumbnails of some rows (sorted, unique), (R, 2, 256) uint8. Only
            rows with candidates are read, and these are few.
        settings: Limits; no links where ``near_distance`` is None.

    Returns:
        Links with ``first < second``; a pair may occur once for each view.
    """
    none = np.empty(0, dtype=np.int64)
    links = [Links.of(none, none, NEAR)]
    if settings.near_distance is None:
        return links[0]
    pairs = [close_pairs(hashes[:, view], labels, settings.near_distance) for view in range(VIEWS)]
    needed = np.unique(np.concatenate([rows for pair in pairs for rows in pair[:2]]))
    small = thumbnails(needed)
    for view, (first, second, bits) in enumerate(pairs):
        agrees = np.empty(len(first), dtype=bool)
        for start in range(0, len(first), PAIRS_PER_CHUNK):
            part = slice(start, start + PAIRS_PER_CHUNK)
            one, other = (
                small[np.searchsorted(needed, rows[part]), view] for rows in (first, second)
            )
            agrees[part] = thumbnail_correlation(one, other) >= settings.near_correlation
        links.append(Links.of(first[agrees], second[agrees], NEAR, bits[agrees]))
    return Links.joined(links)


def pool_thumbnails(pool: Table, rows: np.ndarray) -> np.ndarray:
    """Read the thumbnails of some rows (sorted) of a pool, (R, 2, 256) uint8."""
    found = [as_thumbnails(pa.chunked_array([], pa.binary(512)))]
    start = 0
    for part in pool.parts(["thumbnail"]):
        begin, end = np.searchsorted(rows, [start, start + len(part)])
        if end > begin:
            found.append(as_thumbnails(part["thumbnail"].take(pa.array(rows[begin:end] - start))))
        start += len(part)
    return np.concatenate(found)


def pool_squares(pool: Table, rows: np.ndarray, size: int) -> np.ndarray:
    """Read the pictures of some rows (sorted) of a pool as squares, (R, size, size) uint8."""
    squares = np.empty((len(rows), size, size), dtype=np.uint8)
    start = 0
    for part in pool.parts(["image"]):
        begin, end = np.searchsorted(rows, [start, start + len(part)])
        for place in range(begin, end):
            data = part["image"][int(rows[place]) - start].as_py()
            picture = Image.fromarray(drop_equal_channels(decode_staged(data))).convert("L")
            squares[place] = np.asarray(picture.resize((size, size), Image.Resampling.BOX))
        start += len(part)
    return squares
