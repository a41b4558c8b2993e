"""Near copies on real images: planted copies are found, other pictures are not flagged."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from echostill.curation.copies.groups import NEAR
from echostill.curation.copies.near import NearSettings, near_links, pool_thumbnails
from echostill.curation.ingestion.perceptual import as_hashes
from echostill.platform.tables.store import Store

POOL = Path(__file__).resolve().parents[3] / "examples/quickstart/pool"
FILES = [
    path
    for organ in ("fetal_head", "liver", "muscle")
    for path in sorted((POOL / organ).glob("*.jpg"))[::6]
]


def planted(data, seed):
    """A copy as other data sets hold it: resized, saved again, a little brighter or flatter."""
    rng = np.random.default_rng(seed)
    image = Image.open(io.BytesIO(data)).convert("RGB" if seed % 3 else "L")
    scale = rng.choice([0.5, 0.6, 0.75, 0.9, 1.25, 1.5, 2.0])
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BILINEAR)
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.9, 1.1))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.9, 1.1))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=int(rng.integers(60, 96)))
    return sink.getvalue()


@pytest.fixture(scope="module")
def pool(tmp_path_factory, make_pool):
    files = {f"{number:03d}_original.jpg": path.read_bytes() for number, path in enumerate(FILES)}
    copies = [planted(data, seed) for seed, data in enumerate(files.values())]
    files |= {f"{number:03d}_copy.jpg": data for number, data in enumerate(copies)}
    return make_pool(Store(str(tmp_path_factory.mktemp("near"))), files)


def links_of(pool, labels=None, **settings):
    hashes = as_hashes(pool.read(["perceptual_hash"])["perceptual_hash"])
    labels = np.arange(len(hashes)) if labels is None else labels
    return near_links(
        hashes, labels, lambda rows: pool_thumbnails(pool, rows), NearSettings(**settings)
    )


def test_the_bar_of_planted_copies_and_of_other_pairs(pool):
    """At least 99% of the planted pairs are found, at most 1% of the others are flagged."""
    count = len(FILES)
    links = links_of(pool)
    assert (links.kind == NEAR).all()
    pairs = set(zip(links.first.tolist(), links.second.tolist(), strict=True))
    own = {(row, row + count) for row in range(count)}
    every = count * (2 * count - 1)
    assert len(pairs & own) >= 0.99 * count
    assert len(pairs - own) <= 0.01 * (every - count)


def test_rows_of_one_label_are_not_compared(pool):
    count = len(FILES)
    links = links_of(pool, labels=np.arange(2 * count) % count)
    assert not ((links.second - links.first) == count).any()
    assert len(links_of(pool, near_distance=None).first) == 0
    assert len(links_of(pool, near_correlation=1.0, near_distance=0).first) <= count


def test_thumbnails_are_read_for_the_rows_asked_for(pool):
    every = pool.read(["thumbnail"])["thumbnail"].to_pylist()
    for rows in ([], [0], [6, 7, 20], list(range(len(every)))):
        found = pool_thumbnails(pool, np.array(rows, dtype=np.int64))
        assert [value.tobytes() for value in found] == [every[row] for row in rows]
