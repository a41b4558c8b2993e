import numpy as np
import pyarrow as pa
import pytest

from echostill.curation.datasets.chosen import open_chosen
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.imaging.images import encode
from echostill.platform.tables.table import write_table


def test_pictures_come_from_their_rows(coreset_store):
    chosen = open_chosen(coreset_store.root, "default")
    ids = chosen.described()["image_id"].to_pylist()
    assert ids == list(coreset_store.pictures)
    wanted = np.array([0, 3, 20, 21, len(ids) - 1])
    found = list(chosen.pictures(wanted))
    assert [row for row, _ in found] == wanted.tolist()
    assert [data for _, data in found] == [
        encode(coreset_store.pictures[ids[row]], "png") for row in wanted
    ]


def test_a_wrong_name_gets_the_nearest(coreset_store):
    with pytest.raises(UsageError, match="no coreset 'defualt'"):
        open_chosen(coreset_store.root, "defualt")


def test_a_chosen_image_that_is_not_in_the_pool(coreset_store):
    rows, foreign = pa.table({"image_id": ["f" * 32], "selected": [True]}), "foreign"
    write_table(coreset_store.store.coreset(foreign), rows, stage="select", fingerprint={})
    with pytest.raises(EchostillError, match="1 of 1 images of coreset 'foreign'"):
        open_chosen(coreset_store.root, foreign)


def test_a_coreset_of_an_older_pool_is_refused(coreset_store):
    rows = pa.table({"image_id": list(coreset_store.pictures)[:1], "selected": [True]})
    made_from = {"inputs": {"pool": "0" * 64}}
    write_table(coreset_store.store.coreset("older"), rows, stage="select", fingerprint=made_from)
    with pytest.raises(UsageError, match="select"):
        open_chosen(coreset_store.root, "older")
