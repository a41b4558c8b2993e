"""Runs: what is killed in the middle and continued gives the same bytes."""

import json

import pytest

from echostill.eval.unius.cards import published_cards
from echostill.eval.unius.prepared import open_prepared
from echostill.eval.unius.running import run as running
from echostill.eval.unius.running.rows import read_rows
from echostill.eval.unius.running.run import plan_bench, run_bench
from echostill.eval.unius.running.settings import load_bench
from echostill.jobs.cli.main import main
from echostill.platform.cluster.waiting import local_nodes
from echostill.platform.errors import UsageError
from echostill.platform.ray_tasks import TaskPool
from echostill.platform.tables.store import Store
from echostill.platform.tables.verify import verify_store

GIVEN = [
    "student=tinyusfm-micro",
    "student_image_size=32",
    "models=[untrained]",
    "protocol.frozen.few_shot=[]",
    "progress=false",
]


@pytest.fixture
def here(monkeypatch):
    """Compute in this process, in order: what Ray does with it is tested with all sets."""

    def one_by_one(pool, task, items, *, describe=None):
        yield from ((number, task(item)) for number, item in enumerate(items))

    monkeypatch.setattr(TaskPool, "map", one_by_one)
    monkeypatch.setattr(running, "plan_on_cluster", lambda config, make: make(local_nodes()))


class Untracked:
    """Stands for MLflow, which takes seconds to begin a database."""

    run_id = "none"

    @classmethod
    def start(cls, *arguments):
        return cls()

    def metrics(self, rows): ...

    def finish(self, status="FINISHED"): ...


@pytest.fixture
def untracked(monkeypatch):
    monkeypatch.setattr(running, "Tracker", Untracked)


@pytest.fixture
def config(prepared_set, tmp_path):
    folder = prepared_set("busi")[1].table.storage.root

    def load(store="store", *texts):
        given = [f"store={tmp_path / store}", f"prepared={folder}", *GIVEN, *texts]
        return load_bench(None, given)

    return load


def files(config):
    storage = Store(config.store).benchmark(config.name)
    names = [n for n in storage.list(recursive=True) if n.startswith(("rows/", "predictions/"))]
    return {name: storage.read(name) for name in names}


def test_killed_and_continued_gives_the_same_bytes(here, untracked, config, monkeypatch):
    whole = config("whole", "seeds=[0, 1, 2]")
    run_bench(whole)
    cut = config("cut", "seeds=[0, 1, 2]")
    measure, calls = running.measure_unit, []

    def dies(unit, settings):
        calls.append(unit.model.seed)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(unit, settings)

    monkeypatch.setattr(running, "measure_unit", dies)
    with pytest.raises(KeyboardInterrupt):
        run_bench(cut)
    assert len(files(cut)) == 2  # a row and its predictions
    result = run_bench(cut)
    assert calls == [0, 1, 1, 2]
    assert result.counts == {"units": 3, "earlier": 1}
    assert files(cut) == files(whole)
    assert verify_store(cut.store).sound


def test_more_seeds_add_rows_and_other_settings_are_refused(here, untracked, config):
    run_bench(config("store"))
    result = run_bench(config("store", "seeds=[0, 1]"))
    assert result.counts == {"units": 2, "earlier": 1}
    rows = read_rows(Store(config("store").store).benchmark("default"))
    assert [row["seed"] for row, _ in rows] == [0, 1]
    other = config("store", "protocol.frozen.neighbours=3")
    with pytest.raises(UsageError, match=r"neighbours 10 -> 3"):
        run_bench(other)
    with pytest.raises(UsageError, match=r"precision unset -> bfloat16"):
        run_bench(config("store", "precision=bfloat16"))
    run_bench(other, overwrite=True)
    assert len(read_rows(Store(other.store).benchmark("default"))) == 1


@pytest.mark.slow  # begins a database of MLflow
def test_runs_are_nested_in_mlflow(here, config):
    from mlflow.tracking import MlflowClient

    done = config("store", "seeds=[0, 1]")
    run_bench(done)
    storage = Store(done.store).benchmark("default")
    record = json.loads(storage.read("mlflow.json"))
    client = MlflowClient(record["uri"])
    experiment = client.get_run(record["run_id"]).info.experiment_id
    runs = client.search_runs([experiment])
    nested = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == record["run_id"]]
    assert sorted(r.data.params["seed"] for r in nested) == ["0", "1"]
    rows = {str(row["seed"]): row for row, _ in read_rows(storage)}
    for one in nested:
        first = rows[one.data.params["seed"]]["measured"][0]
        logged = one.data.metrics[f"{first['method']}/clean/1/balanced_accuracy"]
        assert logged == first["metrics"]["balanced_accuracy"]
        assert one.info.status == "FINISHED"


def test_a_plan_starts_nothing_and_estimates_hours(config):
    told = plan_bench(config("store", "seeds=[0, 1]")).describe()
    assert "0 of 2 results" in told
    assert "hours of one worker" in told
    assert not Store(config("store").store).storage.exists()


@pytest.mark.ray
@pytest.mark.slow
def test_all_sets_from_download_to_report(make_tree, tmp_path, ray_cluster):
    """The commands of the documentation, over all 18 tasks, with a micro model and a tiny CNN."""
    sets, store = tmp_path / "sets", tmp_path / "store"
    for name in published_cards():
        tree = make_tree(name)
        source = tree.write(tmp_path / "downloads" / name)
        command("prepare", name, "--from", source, "--to", str(sets / name), "--accept-differences")
        command("verify", str(sets / name))
        counts = open_prepared(str(sets / name)).counts
        out = counts["rows"] + sum(counts["dropped"].values()) + counts["quarantined"]
        assert counts["rows_in"] == tree.rows_in == out
    given = [
        f"store={store}",
        "student=tinyusfm-micro",
        "student_image_size=32",
        "protocol.image_size=32",
        "protocol.frozen.few_shot=[]",
        "progress=false",
        "workers=2",
    ]
    models = ("--models", "untrained,constant,thumbnail,timm:mobilenetv3_small_050")
    command("run", "--prepared", str(sets), *models, *given)
    storage = Store(str(store)).benchmark("default")
    rows = [row for row, _ in read_rows(storage)]
    kinds = [row["kind"] for row in rows if row["candidate"] == "untrained"]
    assert (kinds.count("classification"), kinds.count("segmentation")) == (8, 10)
    assert len(rows) == 4 * 18
    trained = ["--sets", "busi,luminous", "--models", "untrained,unet", "name=trained"]
    epochs = ["classification_epochs", "segmentation_epochs"]
    one = [f"protocol.published.{key}=1" for key in epochs]
    width = "protocol.published.head_width=8"
    more = [*given, *trained, "protocols=[published]", *one, width]
    command("run", "--prepared", str(sets), *more)
    assert len(read_rows(Store(str(store)).benchmark("trained"))) == 3
    command("report", "--store", str(store))
    assert "84.91 (other splits)" in storage.read("report.html").decode()
    assert verify_store(str(store)).sound


def command(*arguments):
    """Run `echostill bench`; it must succeed."""
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert end.value.code in (0, None), arguments
