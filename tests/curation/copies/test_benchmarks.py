"""Benchmarks are read as the pool was, and named so that a person knows them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from echostill.curation.copies.benchmarks import COLUMNS, find_benchmarks
from echostill.platform.errors import UsageError
from echostill.platform.tables.store import Store


@pytest.fixture
def pool(tmp_path, make_pool):
    sink = io.BytesIO()
    Image.fromarray(np.full((20, 30), 90, dtype=np.uint8)).save(sink, "PNG")
    return make_pool(Store(str(tmp_path / "store")), {"a.png": sink.getvalue()})


def names(locations, pool):
    return [benchmark.name for benchmark in find_benchmarks(locations, pool)]


def test_names_are_short_and_tell_benchmarks_apart(pool):
    assert names(["/data/busi/labels.csv"], pool) == ["busi/labels"]
    assert names(["liver.csv"], pool) == ["liver"]
    assert names(["/a/x/labels.csv", "/b/x/labels.csv"], pool) == ["a/x/labels", "b/x/labels"]
    with pytest.raises(UsageError, match="twice"):
        names(["one", "one/"], pool)


def test_images_are_staged_as_the_pools_were(pool, tmp_path):
    saved = {"stage_side": 64, "source": ["elsewhere"], "group_pattern": "x", "store": "s"}
    pool.storage.write("configuration.json", json.dumps(saved).encode())
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.full((100, 200), number, dtype=np.uint8)).save(folder / f"{number}.png")
    (benchmark,) = find_benchmarks([str(folder)], pool)
    assert benchmark.settings.stage_side == 64
    assert benchmark.settings.group_pattern is None
    rows = [row for part in benchmark.parts() for row in part.to_pylist()]
    assert [row["source"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert tuple(rows[0]) == COLUMNS
    assert Image.open(io.BytesIO(rows[0]["image"])).size == (64, 32)
