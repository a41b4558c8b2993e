"""The select stage and `why` on a small store, without Ray."""

import json

import numpy as np
import pyarrow as pa
import pytest

from echostill.curation import SelectConfig, select, why
from echostill.platform.errors import UsageError
from echostill.platform.schemas import POOL_SCHEMA, QUARANTINE_SCHEMA, scores_schema
from echostill.platform.store import Store
from echostill.platform.tables import write_table
from echostill.platform.verify import verify_store

ROWS = 60


def fill(store, order):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(ROWS, 6))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    gradient = rng.random((ROWS, 3)).astype(np.float32)
    ids = [f"{row * 7919 % 10**6:032x}" for row in range(ROWS)]
    scores = pa.Table.from_pylist(
        [
            {
                "image_id": ids[row],
                "feature": features[row].astype(np.float16),
                "gradient_mean": gradient[row].mean(),
                "gradient_std": gradient[row].std(),
                "gradient": gradient[row],
                "reconstruction_error": 0.1,
            }
            for row in order
        ],
        schema=scores_schema(6, 3),
    )
    pool = pa.Table.from_pylist(
        [
            {
                "image_id": ids[row],
                "group_id": f"group-{row // 4}",
                "source": f"folder/image_{row}.png",
                "organ": "liver",
                "device": "",
                "label": "",
                "frame": 0,
                "image": b"",
            }
            for row in order
        ],
        schema=POOL_SCHEMA,
    )
    for storage, table, stage in (
        (store.scores(), scores, "score"),
        (store.pool(), pool, "ingest"),
    ):
        extra = {"rows_in": ROWS + (1 if stage == "ingest" else 0), "quarantined": 0}
        write_table(storage, table, stage=stage, fingerprint={"digest": ""}, extra=extra)
    held = pa.Table.from_pylist(
        [
            {
                "stage": "ingest",
                "id": "folder/broken.png",
                "source": "folder/broken.png",
                "error_class": "DecodeError",
                "message": "the file is damaged",
            }
        ],
        schema=QUARANTINE_SCHEMA,
    )
    write_table(store.quarantine("ingest"), held, stage="ingest", fingerprint={"digest": ""})
    return ids


@pytest.fixture
def store(tmp_path):
    store = Store(str(tmp_path / "store"))
    fill(store, range(ROWS))
    return store


def config(store, **settings):
    return SelectConfig(store=store.root, clusters=5, **settings)


def selected(store, name):
    table = store.open_coreset(name).read()
    return table.filter(table["selected"])["image_id"].to_pylist()


def test_the_budget_is_met_exactly_whatever_it_is(store):
    for budget in range(1, ROWS + 1):
        select(config(store, budget=budget, name=f"b{budget}"))
        assert len(selected(store, f"b{budget}")) == budget


def test_the_files_do_not_depend_on_the_order_of_the_scores(store, tmp_path):
    other = Store(str(tmp_path / "other"))
    fill(other, np.random.default_rng(5).permutation(ROWS))
    for one in (store, other):
        select(config(one, budget=17))
    name = "part-00000.parquet"
    assert store.coreset("default").read(name) == other.coreset("default").read(name)


def test_selecting_again_is_done_already_and_another_request_is_refused(store):
    select(config(store, budget=17))
    assert select(config(store, budget=17)).startswith("already done")
    with pytest.raises(UsageError, match=r"configuration\.budget: 17 -> 18"):
        select(config(store, budget=18))
    select(config(store, budget=18), overwrite=True)
    assert len(selected(store, "default")) == 18


def test_why_tells_both_sides_of_the_border(store):
    select(config(store, budget=17))
    rows = store.open_coreset("default").read().to_pylist()
    for row in rows:
        answer = why(store.root, "default", row["image_id"])
        assert ("not in the coreset" in answer.text) == (not row["selected"])
        assert row["reason"] in answer.text
        assert json.dumps(answer.as_dict())
    by_name = why(store.root, "default", "image_7.png")
    assert by_name.values["origin"]["source"] == "folder/image_7.png"


def test_why_knows_the_quarantine_and_names_the_nearest(store):
    select(config(store, budget=17))
    assert "damaged" in why(store.root, "default", "folder/broken.png").text
    with pytest.raises(UsageError, match="image_7"):
        why(store.root, "default", "folder/image_77.png")
    with pytest.raises(UsageError, match="Did you mean 'default'"):
        why(store.root, "defult", "image_7.png")


def test_verify_accepts_the_store_and_finds_a_changed_byte(store):
    select(config(store, budget=17))
    assert verify_store(store.root).sound, verify_store(store.root).problems
    name = "part-00000.parquet"
    data = bytearray(store.coreset("default").read(name))
    data[len(data) // 2] ^= 1
    store.coreset("default").write(name, bytes(data))
    problems = verify_store(store.root).problems
    assert any("coresets/default" in problem and "checksum" in problem for problem in problems)


def test_verify_finds_rows_that_went_missing(store):
    select(config(store, budget=17))
    store.quarantine("ingest").delete("")
    assert any("rows in" in problem for problem in verify_store(store.root).problems)
