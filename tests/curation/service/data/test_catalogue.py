import numpy as np
import pytest

from echostill.curation.service.data.catalogue import Catalogue, build_catalogue
from echostill.curation.service.data.columns import write_columns
from echostill.curation.service.data.thumbnails import Thumbnails
from echostill.platform.imaging.images import decode_image, resize_longest
from echostill.platform.tables.store import Store


def test_every_pool_row_is_there_in_the_order_of_ids(state, make):
    catalogue = state.catalogue
    rows = sorted(make["pool_rows"](), key=lambda row: row["image_id"])
    assert catalogue.ids[0] == rows[0]["image_id"]
    for row, expected in enumerate(rows):
        del expected["image"]
        found = catalogue.image(row)
        assert found.keys() >= expected.keys()
        assert not {"feature", "perceptual_hash", "thumbnail"} & found.keys()
        for name, value in expected.items():
            same = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
            assert found[name] == same


def test_scores_stand_at_their_images(state, built):
    table = Store(str(built)).open_scores().read()
    catalogue = state.catalogue
    for expected in table.drop(["feature"]).to_pylist():
        row = catalogue.ids.find(expected.pop("image_id"))
        assert catalogue.scores(row) == expected
    assert len(catalogue.scored_rows) == table.num_rows
    unscored = np.flatnonzero(~catalogue.scored)
    assert len(unscored) == 4
    assert catalogue.scores(int(unscored[0])) is None


def test_counts_are_those_of_the_pool(state):
    counts = state.catalogue.counts("organ", 10)
    assert {item["value"]: item["images"] for item in counts} == {
        "liver": 60,
        "heart": 60,
        "lung": 60,
        "": 60,
    }
    assert len(state.catalogue.counts("organ", 2)) == 2


def test_a_pool_without_scores_is_a_catalogue(tmp_path, built):
    store = Store(str(built))
    steps = []
    table = build_catalogue(store.open_pool(), None, lambda *step: steps.append(step))
    fractions = [fraction for _, fraction in steps]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] < 1
    write_columns(tmp_path / "c.arrow", table)
    catalogue = Catalogue(tmp_path / "c.arrow")
    assert len(catalogue) == 240
    assert not catalogue.scored.any()
    assert catalogue.scores(0) is None


@pytest.mark.parametrize("cache_bytes", [0, 10**6])
def test_pixels_are_found_where_the_catalogue_says(state, built, make, cache_bytes):
    thumbnails = Thumbnails(Store(str(built)).open_pool(), cache_bytes)
    for row in (0, 89, 90, 179, 239):
        location = state.catalogue.location(state.catalogue.ids.find(make["identity"](row)))
        found = decode_image(thumbnails.picture(*location, 1024, "png"))
        assert np.array_equal(found, make["picture"](row))
        small = decode_image(thumbnails.picture(*location, 16, "png"))
        assert np.array_equal(small, resize_longest(make["picture"](row), 16))
        jpeg = thumbnails.picture(*location, 32, "jpeg")
        assert jpeg[:2] == b"\xff\xd8"
        assert thumbnails.picture(*location, 32, "jpeg") == jpeg


def test_row_groups_are_walked_to_the_row(tmp_path, make):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from echostill.platform.tables.schemas import POOL_SCHEMA
    from echostill.platform.tables.storage import Storage
    from echostill.platform.tables.table import Table, part_record, write_manifest

    rows = make["pool_rows"](200)
    path = tmp_path / "part-00000.parquet"
    # Row groups larger than what one read takes, and several of them.
    pq.write_table(pa.Table.from_pylist(rows, schema=POOL_SCHEMA), path, row_group_size=130)
    storage = Storage(str(tmp_path))
    record = part_record(path.name, 200, path.read_bytes())
    write_manifest(storage, stage="ingest", schema=POOL_SCHEMA, parts=[record], fingerprint={})
    thumbnails = Thumbnails(Table.open(storage, "ingest"))
    for row in (0, 63, 64, 129, 130, 199):
        found = decode_image(thumbnails.picture(0, row, 1024, "png"))
        assert np.array_equal(found, make["picture"](row))
