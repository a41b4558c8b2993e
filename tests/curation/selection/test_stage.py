"""The select stage and `why` on a small store, without Ray."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echostill.curation import SelectConfig, select, why
from echostill.curation.selection.stage import plan_select
from echostill.platform.errors import UsageError
from echostill.platform.tables.schemas import POOL_SCHEMA, QUARANTINE_SCHEMA, scores_schema
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import write_table
from echostill.platform.tables.verify import verify_store

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


@pytest.mark.slow
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
    assert str(select(config(store, budget=17))).startswith("already done")
    with pytest.raises(UsageError, match="refused: budget 17 -> 18"):
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


def parts_of(store, name="default"):
    storage = store.coreset(name)
    return [storage.read(part) for part in store.open_coreset(name).part_names]


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A thousand rows in three layouts of parts, written in three orders."""
    generator = np.random.default_rng(2)
    rows = 1000
    features = generator.normal(size=(rows, 24)).astype(np.float16)
    features[1::7] = features[::7][: len(features[1::7])]  # duplicates
    gradient = generator.random((rows, 3)).astype(np.float32)
    ids = [f"{row * 7919 % 10**6:032x}" for row in range(rows)]
    stores = []
    for layout, rows_per_part in enumerate((1000, 130, 7)):
        order = np.random.default_rng(layout).permutation(rows) if layout else np.arange(rows)
        store = Store(str(tmp_path_factory.mktemp(f"layout{layout}")))
        scores = pa.table(
            [
                [ids[row] for row in order],
                list(features[order]),
                gradient[order].mean(axis=1),
                gradient[order].std(axis=1),
                list(gradient[order]),
                gradient[order, 0],
            ],
            schema=scores_schema(24, 3),
        )
        pool = pa.table({"image_id": ids, "group_id": ids, "organ": ["liver", "lung"] * 500})
        for storage, table in ((store.scores(), scores), (store.pool(), pool)):
            write_table(
                storage,
                table,
                stage="score",
                fingerprint={"digest": ""},
                rows_per_part=rows_per_part,
            )
        stores.append(store)
    return stores


@pytest.mark.parametrize("method", ["dual-rank", "facility-location"])
def test_no_layout_and_no_scratch_file_changes_a_byte(larger, monkeypatch, method):
    wanted = {"budget": 77, "clusters": 20, "max_points_per_centroid": 30, "method": method}
    for number, one in enumerate(larger):
        if number == 2:  # features in a file instead of memory
            monkeypatch.setattr("echostill.curation.selection.features.MEMORY_SHARE", 0.0)
        name = f"{method}-layouts"
        select(SelectConfig(store=one.root, name=name, **wanted, workers=0))
        assert parts_of(one, name) == parts_of(larger[0], name)
        assert one.open_coreset(name).manifest["training_rows"] == 600


def test_ray_workers_change_no_byte(larger, ray_cluster):
    for name, workers in (("here", 0), ("one", 1), ("two", 2)):
        select(SelectConfig(store=larger[1].root, name=name, budget=77, workers=workers))
    assert parts_of(larger[1], "here") == parts_of(larger[1], "one") == parts_of(larger[1], "two")


def test_pins_and_exclusions_from_files_and_from_callers(store, tmp_path):
    ids = sorted(store.open_scores().read(["image_id"])["image_id"].to_pylist())
    csv = tmp_path / "out.csv"
    csv.write_text(f"image_id,reason\n{ids[0]},blank\n{ids[1]},\n")
    given = pa.table({"image_id": [ids[2]], "reason": ["dark"]})
    parquet = tmp_path / "in.parquet"
    pq.write_table(pa.table({"image_id": [ids[3]]}), parquet)
    files = {"exclude": str(csv), "pin": str(parquet)}
    select(config(store, budget=17, **files), excluded=given)
    rows = store.open_coreset("default").read().to_pylist()
    assert [row["reason"] for row in rows[:3]] == [
        "not selected: excluded, blank",
        "not selected: excluded",
        "not selected: excluded, dark",
    ]
    assert rows[3]["reason"].startswith("selected: pinned; ")
    assert sum(row["selected"] for row in rows) == 17
    assert "rank           none: excluded\n" in why(store.root, "default", ids[0]).text
    # What the files hold is part of the fingerprint, where they lie is not.
    moved = tmp_path / "moved.csv"
    moved.write_bytes(csv.read_bytes())
    again = config(store, budget=17, exclude=str(moved), pin=str(parquet))
    assert str(select(again, excluded=given)).startswith("already done")
    moved.write_text(f"image_id,reason\n{ids[0]},blank\n")
    with pytest.raises(UsageError, match="refused: excluded: 3 images -> 2 images"):
        select(again, excluded=given)
    # Case and blanks do not matter; a list that matches less than it names is refused, with counts.
    moved.write_text(f"image_id\n {ids[0].upper()}\n{ids[1]}\n")
    select(config(store, budget=17, exclude=str(moved), name="shouted"))
    shouted = store.open_coreset("shouted").read().to_pylist()
    assert [row["selected"] for row in shouted[:2]] == [False, False]
    moved.write_text(f"image_id\n{ids[0]}\n{ids[1][:8]}\nnone\n")
    with pytest.raises(UsageError, match=rf"2 of 3 images .* not in the pool: '{ids[1][:8]}'"):
        select(again, excluded=given)
    with pytest.raises(UsageError, match="exclude: 2 of 3"):
        plan_select(again)
    with pytest.raises(UsageError, match="no file"):
        select(config(store, exclude=str(tmp_path / "none.csv"), name="x"))


def test_balance_by_a_column_of_the_pool(larger):
    select(SelectConfig(store=larger[0].root, name="even", budget=100, balance="organ"))
    table = larger[0].open_coreset("even").read()
    chosen = table.filter(table["selected"])
    assert chosen["stratum"].to_pylist().count("liver") == 50


def test_the_plan_says_what_will_be_done(larger):
    chosen = SelectConfig(
        store=larger[0].root, budget=77, clusters=20, max_points_per_centroid=30, method="d2"
    )
    text = plan_select(chosen).describe()
    assert "25 iterations on 600 of 1000 images, CPU" in text
    assert "over the whole pool" in text
    assert "in threads of this process" in text
    assert "48.0 kB in memory" in text
    refused = chosen.model_copy(update={"operation_limit": 1e5})
    for work in (plan_select, select):
        with pytest.raises(UsageError, match="above operation_limit"):
            work(refused)
    assert "by 2 Ray worker" in plan_select(chosen.model_copy(update={"workers": 2})).describe()


def test_a_refused_request_claims_nothing(store):
    refused = {
        "no column 'orgn'": {"balance": "orgn"},
        "not scored: nobody": {},
        "largest feasible": {"max_per_group": 1, "budget": 50},
    }
    for message, keys in refused.items():
        pins = pa.table({"image_id": ["nobody"]}) if "nobody" in message else None
        with pytest.raises(UsageError, match=message):
            select(config(store, **keys), pinned=pins)
    select(config(store, budget=17))
    assert len(selected(store, "default")) == 17
