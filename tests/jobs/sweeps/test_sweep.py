"""A sweep of two runs on a few real images: trained once, nested, compared, resumed."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest

from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.settings import IngestSettings
from echostill.curation.ingestion.sources import read_source
from echostill.jobs.sweeps.sweep import PAGE, TABLE, SweepConfig, plan_sweep, sweep, trials_of
from echostill.platform.config import validate
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.tables.schemas import CORESET_SCHEMA, POOL_SCHEMA
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import write_table
from echostill.platform.tables.verify import verify_store

SAMPLE = Path(__file__).resolve().parents[3] / "examples" / "quickstart"
TEACHER = str(SAMPLE / "teacher" / "usfm-micro.safetensors")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("sweep") / "store"))
    settings = IngestSettings(source=str(SAMPLE / "pool" / "manifest.csv"))
    rows = [read_source(source, settings)[0] for source in list_sources(settings)[::90][:8]]
    pool = pa.Table.from_pylist(rows, schema=POOL_SCHEMA)
    chosen = [{"image_id": row["image_id"], "selected": True} for row in rows]
    counts = {"rows_in": len(rows), "quarantined": 0}
    write_table(store.pool(), pool, stage="ingest", fingerprint={"digest": "0"}, extra=counts)
    coreset = pa.Table.from_pylist(chosen, schema=CORESET_SCHEMA)
    write_table(store.coreset("default"), coreset, stage="select", fingerprint={"digest": "0"})
    return store


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    source = SAMPLE / "benchmark" / "liver.csv"
    with source.open() as file:
        rows = list(csv.DictReader(file))[::9]
    for row in rows:
        row["file"] = str(source.parent / row["file"])
    target = tmp_path_factory.mktemp("task") / "liver.csv"
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return {"name": "liver", "kind": "classification", "manifest": str(target)}


def config(store, task=None, **changes):
    values = {
        "store": store.root,
        "name": "tiny",
        "base": {
            "store": store.root,
            "teacher": {"model": "usfm-micro", "weights": TEACHER},
            "student": "tinyusfm-micro",
            "training": {"steps": 3, "batch_size": 2, "checkpoints": 1, "threads": 1},
        },
        "grid": {"training.learning_rate": [0.01, 0.02]},
        "task": task,
        "probe_seeds": [0, 1],
        "progress": False,
        **changes,
    }
    return validate(SweepConfig, values)


def test_two_runs_trained_once_nested_and_compared(store, task, ray_cluster, monkeypatch):
    settings = config(store, task)
    said = str(sweep(settings))
    assert "2 combinations, 2 runs: " in said
    storage = store.storage.at("sweeps/tiny")
    table = json.loads(storage.read(TABLE))
    names = [run.name for trial in trials_of(settings) for run in trial.runs]
    assert store.run_names() == sorted(names)
    for line in table["trials"]:
        assert len(line["probes"]["k-NN"]["values"]) == 2
        assert line["loss"]["mean"] > 0
    assert b"<!DOCTYPE html>" in storage.read(PAGE)
    assert not storage.list("tune", recursive=True)
    assert verify_store(store.root).sound
    _nested(store, names)

    # Again: nothing is trained, and only the probe that is missing is made.
    monkeypatch.setattr("echostill.jobs.sweeps.sweep._train", None)
    made = store.run(names[0]).read("model.safetensors")
    storage.delete(f"rows/{names[1]}.json")
    assert "(2 finished earlier)" in str(sweep(settings))
    assert json.loads(storage.read(TABLE)) == table
    assert store.run(names[0]).read("model.safetensors") == made
    assert "1 of 1 run(s) done" in plan_sweep(settings).describe()
    _nested(store, names)


def _nested(store, names):
    """One record per run and one for the sweep, whatever was repeated."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{store.storage.local_path('mlflow.db')}")
    experiment = client.get_experiment_by_name("echostill")
    runs = client.search_runs([experiment.experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    assert sorted(by_name) == sorted([*names, "sweep-tiny"])
    assert len(runs) == len(by_name)
    for name in names:
        parent = by_name[name].data.tags["mlflow.parentRunId"]
        assert parent == by_name["sweep-tiny"].info.run_id
    assert all(run.info.status == "FINISHED" for run in runs)


@pytest.mark.slow
def test_failed_runs_are_named_and_the_rest_is_compared(store, monkeypatch):
    """What fails is said at the end; here every run does, without a cluster."""
    settings = config(store, name="fails")
    names = [run.name for trial in trials_of(settings) for run in trial.runs]
    monkeypatch.setattr(
        "echostill.jobs.sweeps.sweep._train",
        lambda *_, **__: dict.fromkeys(names, "out of memory."),
    )
    with pytest.raises(EchostillError, match=r"2 of 2 runs failed.*out of memory") as caught:
        sweep(settings)
    assert caught.value.exit_code == 1
    assert b"out of memory" in store.storage.at("sweeps/fails").read(PAGE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {}}, "grid"),
        ({"grid": {"training.step": [1]}}, "Did you mean 'steps'"),
        ({"base": "no/such.yaml"}, "no configuration file"),
        ({"name": "../else"}, "name"),
        ({"task": {"name": "x", "kind": "classification", "manifest": "no.csv"}}, "no.csv"),
        ({"grid": {"teacher.weights": ["no/such.pth"]}}, "such.pth"),
        ({"grid": {"coreset": ["none"]}}, "no coreset 'none'"),
    ],
)
def test_wrong_usage_ends_before_any_work(store, changes, words):
    with pytest.raises(UsageError, match=words):
        sweep(config(store, **changes))


def test_a_base_file_and_what_the_sweep_says_itself(store, tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text(
        f"store: {store.root}\nseed: 1\ndistill:\n  training: {{steps: 4}}\nselect: {{budget: 5}}\n"
    )
    settings = config(store, base=str(base), seed=9)
    own = trials_of(settings)[0].runs[0].config
    assert (own.training.steps, own.seeds, own.training.learning_rate) == (4, (9,), 0.01)
