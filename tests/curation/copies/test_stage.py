"""The duplicates stage: what is found, which copy is kept, and in which words."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageFilter

from echostill.curation import DuplicatesConfig, find_duplicates
from echostill.curation.copies import stage
from echostill.curation.copies.stage import plan_find_duplicates
from echostill.platform.errors import UsageError
from echostill.platform.tables.schemas import DUPLICATES_SCHEMA, scores_schema
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table, write_table
from echostill.platform.tables.verify import verify_store


def encoded(image, kind="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def picture(seed, side=240):
    """A speckled picture with structure of its own."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 200, (12, 12)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    speckle = rng.rayleigh(12, (side, side))
    return Image.fromarray(np.clip(np.asarray(image) + speckle, 0, 255).astype(np.uint8))


FILES = {
    "a.png": encoded(picture(1)),
    "a_again.png": encoded(picture(1), compress_level=1),  # other bytes, the same pixels
    "a_small.jpg": encoded(picture(1).resize((150, 150)), "JPEG", quality=80),
    "b.png": encoded(picture(2)),
    "b_soft.png": encoded(picture(2).filter(ImageFilter.GaussianBlur(4))),
    "c.png": encoded(picture(3)),
    "c_neighbour.png": encoded(picture(3).resize((239, 240))),
    "d.png": encoded(picture(4)),
    "black.png": encoded(Image.new("L", (240, 240))),
    "dark.png": encoded(Image.new("L", (240, 240), 3)),
}
GROUPS = {"c.png": "patient", "c_neighbour.png": "patient"}


@pytest.fixture
def store(tmp_path, make_pool):
    store = Store(str(tmp_path / "store"))
    make_pool(store, FILES, GROUPS, rows_per_part=4)
    return store


def rows_of(store):
    """The table by the files' names, with the names of the kept."""
    pool = store.open_pool().read(["image_id", "source"]).to_pylist()
    names = {row["image_id"]: row["source"] for row in pool}
    table = Table.open(store.duplicates(), "duplicates").read()
    assert table.schema == DUPLICATES_SCHEMA
    assert table["image_id"].to_pylist() == sorted(table["image_id"].to_pylist())
    return {
        names[row["image_id"]]: {**row, "kept_name": names[row["kept_id"]]}
        for row in table.to_pylist()
    }


def test_copies_are_found_and_the_better_one_is_kept(store):
    said = str(find_duplicates(DuplicatesConfig(store=store.root)))
    assert said == "1 exact, 2 near, 0 semantic copies in 2 groups; 10 images searched"
    rows = rows_of(store)
    assert set(rows) == {"a.png", "a_again.png", "a_small.jpg", "b.png", "b_soft.png"}
    assert rows["b.png"]["kept"]
    assert rows["b_soft.png"]["kept_name"] == "b.png"
    assert "near copy" in rows["b_soft.png"]["reason"]
    assert rows["b.png"]["image_id"] in rows["b_soft.png"]["reason"]
    assert "quality" in rows["b_soft.png"]["reason"]
    group = [rows[name] for name in ("a.png", "a_again.png", "a_small.jpg")]
    assert len({row["duplicate_group"] for row in group}) == 1
    assert group[0]["duplicate_group"] == min(row["image_id"] for row in group)
    kept = [row for row in group if row["kept"]]
    assert len(kept) == 1
    assert all(row["kept_id"] == kept[0]["image_id"] for row in group)
    assert "group of 3" in kept[0]["reason"]
    exact = [row for row in group if row["kind"] == "exact"]
    assert len(exact) == 1
    assert exact[0]["kept_id"] < exact[0]["image_id"]
    assert "smallest id" in exact[0]["reason"]
    assert verify_store(store.root).sound


def test_inside_a_group_only_when_asked(store):
    find_duplicates(DuplicatesConfig(store=store.root, within_group=True))
    rows = rows_of(store)
    assert {"c.png", "c_neighbour.png"} <= set(rows)
    assert sum(rows[name]["kept"] for name in ("c.png", "c_neighbour.png")) == 1


def test_the_order_of_the_rows_does_not_matter(store, tmp_path, make_pool):
    other = Store(str(tmp_path / "other"))
    make_pool(other, dict(reversed(FILES.items())), GROUPS, rows_per_part=3)
    for one in (store, other):
        find_duplicates(DuplicatesConfig(store=one.root))
    name = "part-00000.parquet"
    assert store.duplicates().read(name) == other.duplicates().read(name)


def test_again_is_done_already_and_another_search_is_refused(store):
    find_duplicates(DuplicatesConfig(store=store.root))
    again = find_duplicates(DuplicatesConfig(store=store.root, seed=7))
    assert str(again).startswith("already done")
    other = DuplicatesConfig(store=store.root, near_distance=None)
    with pytest.raises(UsageError, match="near_distance 24 -> null"):
        find_duplicates(other)
    said = str(find_duplicates(other, overwrite=True))
    assert said == "1 exact, 0 near, 0 semantic copies in 1 groups; 10 images searched"
    assert "not searched" in plan_find_duplicates(other).describe()


def test_semantic_copies_come_from_the_scores(store):
    with pytest.raises(UsageError, match="echostill score"):
        find_duplicates(DuplicatesConfig(store=store.root, semantic_epsilon=0.01))
    pool = store.open_pool().read(["image_id", "source"]).to_pylist()
    rng = np.random.default_rng(0)
    feature = {row["source"]: rng.normal(size=8) + 9 for row in pool}
    feature["d.png"] = feature["c.png"] + 0.01
    rows = [
        {"image_id": row["image_id"], "feature": feature[row["source"]].astype(np.float16)}
        for row in pool[::-1]
    ]
    table = pa.Table.from_pylist(rows, schema=scores_schema(8, 1))
    write_table(store.scores(), table, stage="score", fingerprint={"digest": ""})
    config = DuplicatesConfig(store=store.root, semantic_epsilon=0.01, near_distance=None)
    assert "1 exact, 0 near, 1 semantic" in str(find_duplicates(config))
    found = rows_of(store)
    pair = [found["c.png"], found["d.png"]]
    assert sorted(row["kind"] for row in pair) == ["", "semantic"]
    assert all(row["distance"] <= 0.01 for row in pair)


def test_a_pool_of_an_earlier_version_is_refused(store):
    bare = store.open_pool().read().drop_columns(["perceptual_hash"])
    write_table(store.pool(), bare, stage="ingest", fingerprint={"digest": ""})
    with pytest.raises(UsageError, match="ingest --overwrite"):
        find_duplicates(DuplicatesConfig(store=store.root))


def test_a_pool_without_copies_has_an_empty_table(tmp_path, make_pool):
    store = Store(str(tmp_path / "store"))
    make_pool(store, {"d.png": FILES["d.png"]})
    assert "0 exact, 0 near" in str(find_duplicates(DuplicatesConfig(store=store.root)))
    assert rows_of(store) == {}


def test_crops_are_found_in_small_pools_and_in_large_ones_when_asked(
    tmp_path, make_pool, monkeypatch
):
    store = Store(str(tmp_path / "store"))
    part = encoded(picture(1).crop((4, 14, 220, 232)))
    files = {**{name: FILES[name] for name in ("a.png", "b.png", "d.png")}, "part.png": part}
    make_pool(store, files, rows_per_part=2)
    find_duplicates(DuplicatesConfig(store=store.root, crop_correlation=None))
    assert rows_of(store) == {}

    def found(**keys):
        find_duplicates(DuplicatesConfig(store=store.root, **keys), overwrite=True)
        return rows_of(store)

    rows = found()
    assert set(rows) == {"a.png", "part.png"}
    assert not rows["part.png"]["kept"]
    assert (rows["part.png"]["kind"], rows["part.png"]["kept_name"]) == ("near", "a.png")
    assert found(near_distance=None) == {}

    monkeypatch.setattr(stage, "CROPS_SEARCHED", 3)
    large = DuplicatesConfig(store=store.root)
    told = "crops were not searched among more than 3 images: crop_correlation=0.93"
    assert told in str(find_duplicates(large, overwrite=True))
    assert told in plan_find_duplicates(large).describe()
    assert rows_of(store) == {}
    assert set(found(crop_correlation=0.93)) == {"a.png", "part.png"}
