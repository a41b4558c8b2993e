"""The pool as a file for another viewer."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from echostill.curation.local import open_store
from echostill.platform.errors import UsageError
from echostill.platform.tables.store import Store


def test_every_image_with_its_place_picture_and_reason(built, tmp_path):
    path = tmp_path / "new" / "atlas.parquet"
    with open_store(str(built)) as store:
        assert store.export_atlas(str(path), side=32) == 240
    table = pq.read_table(path)
    pool = Store(str(built)).open_pool().read(["image_id", "organ", "width"])
    assert table.select(["image_id", "organ", "width"]).equals(
        pool.cast(table.select(["image_id", "organ", "width"]).schema)
    )
    rows = table.to_pylist()
    scored = [row for row in rows if row["cluster"] is not None]
    assert len(scored) == 236
    for row in rows:
        assert (row["x"] is None) == (row["cluster"] is None) == (row["reason"] is None)
    assert np.abs([[row["x"], row["y"]] for row in scored]).max() == pytest.approx(1)
    with Image.open(io.BytesIO(rows[0]["image"]["bytes"])) as picture:
        assert max(picture.size) == 32


def test_pictures_can_be_left_out(built, tmp_path):
    path = tmp_path / "atlas.parquet"
    with open_store(str(built)) as store:
        store.export_atlas(str(path), side=0)
    assert "image" not in pq.read_schema(path).names


def test_another_kind_of_file_is_refused(built, tmp_path):
    with open_store(str(built)) as store, pytest.raises(UsageError, match=r"ends in \.parquet"):
        store.export_atlas(str(tmp_path / "atlas.csv"))
