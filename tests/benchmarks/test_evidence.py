"""The bookkeeping of the long measurement, without any training."""

import importlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from echostill.eval.datasets import LabelledDataset

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def load():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def kept(load):
    return load("evidence_rows")


@pytest.fixture
def units_of(kept):
    """Make units of two arms each that record their runs; one seed may fail."""

    def make(done, fails=None, **depends):
        def run(seed):
            def work():
                if seed == fails:
                    raise KeyboardInterrupt
                done.append(seed)
                return {
                    arm: kept.Row({"liver": np.array([seed, index])}, {"seconds": 0.5})
                    for index, arm in enumerate(("usfm/fixed", "usfm/dynamic"))
                }

            return work

        arms = {arm: {"arm": arm, **depends} for arm in ("usfm/fixed", "usfm/dynamic")}
        return [kept.Unit("distillation", arms, seed, "pair", 700, run(seed)) for seed in range(4)]

    return make


def test_a_run_that_was_cut_goes_on_where_it_was(kept, units_of, tmp_path):
    rows, done = kept.Rows(tmp_path), []
    with pytest.raises(KeyboardInterrupt):
        kept.complete(rows, units_of(done, fails=2), say=lambda _: None)
    assert done == [0, 1]
    units = units_of(done)
    assert [unit.seed for unit in rows.missing(units)] == [2, 3]
    kept.complete(rows, units, say=lambda _: None)
    assert done == [0, 1, 2, 3]
    found = rows.of(units)
    assert {arm: sorted(own) for arm, own in found.items()} == {
        "usfm/fixed": [0, 1, 2, 3],
        "usfm/dynamic": [0, 1, 2, 3],
    }
    assert found["usfm/dynamic"][3].predictions["liver"].tolist() == [3, 1]
    assert found["usfm/dynamic"][3].facts == {"seconds": 0.5}
    assert not list(tmp_path.rglob("*.part"))


def test_rows_of_another_plan_are_made_anew(kept, units_of, tmp_path):
    rows, done = kept.Rows(tmp_path), []
    kept.complete(rows, units_of(done, steps=700), say=lambda _: None)
    assert rows.missing(units_of(done, steps=700)) == []
    changed = units_of(done, steps=800)
    assert len(rows.missing(changed)) == 4
    assert rows.of(changed) == {}


def test_half_a_unit_is_missing(kept, units_of, tmp_path):
    rows, units = kept.Rows(tmp_path), units_of([])
    kept.complete(rows, units, say=lambda _: None)
    rows.path("distillation", "usfm/fixed", 1).unlink()
    assert [unit.seed for unit in rows.missing(units)] == [1]
    assert kept.estimate(rows.missing(units), {"pair": 0.1}) == pytest.approx(70)


def test_a_comparison_is_the_mean_difference_over_tasks_of_the_seeds_both_have(load, kept):
    """Recalls by hand; an arm with a single row is compared with all trainings of the other."""
    random = np.random.default_rng(0)
    tasks, rows = [], {"a": {}, "b": {}, "one": {}}
    for name, size in (("liver", 40), ("breast", 60)):
        labels = np.arange(size) % 3
        groups = np.array([f"{name}-{row // 2}" for row in range(size)])
        pixels = np.zeros((size, 3, 8, 8), dtype=np.uint8)
        tasks.append(
            LabelledDataset(
                name, "classification", tuple(groups), groups, pixels, labels, None,
                ("x", "y", "z"), None, (),
            )
        )  # fmt: skip
    for arm, seeds in (("a", 4), ("b", 3), ("one", 1)):
        for seed in range(seeds):
            predictions = {
                task.name: np.where(random.random(len(task)) < 0.6, task.labels, 0)
                for task in tasks
            }
            rows[arm][seed] = kept.Row(predictions)

    def accuracy(arm, seeds, task):
        recalls = [
            (rows[arm][seed].predictions[task.name] == task.labels)[task.labels == value].mean()
            for seed in seeds
            for value in range(3)
        ]
        return np.mean(recalls)

    report = load("evidence_report")
    for first, second, own, other in (("a", "b", 3, 3), ("a", "one", 4, 1), ("one", "b", 1, 3)):
        expected = np.mean(
            [
                accuracy(first, range(own), task) - accuracy(second, range(other), task)
                for task in tasks
            ]
        )
        found = report.compared(rows[first], rows[second], tasks)
        assert found.value == pytest.approx(expected)
    judged = report.primary(rows, [["a", "b"], ["a", "none"], ["a", "one", "liver"]], tasks)
    assert [entry.get("missing") for entry in judged] == [None, None, ["none"]]
    assert judged[1]["of"] == "liver"


def test_results_of_rows_that_are_gone_stay_where_these_have_fewer(load):
    def results(arms, family):
        return {
            "chance": {},
            "arms": {arm: {"seeds": seeds, "from": name} for arm, seeds in arms.items()},
            "primary": [{"value": 1}],
            "added": {"longer": family},
        }

    name = "held"
    held = results({"a": 5, "b": 3, "c": 2}, [{"value": 1}, {"missing": ["c"]}])
    name = "new"
    found = results({"b": 3, "c": 1, "d": 4}, [{"missing": ["a"]}, {"missing": ["c"]}])
    both = load("evidence_held").beside(found, held)
    assert {arm: values["from"] for arm, values in both["arms"].items()} == {
        "a": "held",
        "b": "new",
        "c": "held",
        "d": "new",
    }
    assert both["added"] == {"longer": held["added"]["longer"]}
    assert both["primary"] is found["primary"]  # as many of it could be judged


def test_the_predictions_that_are_kept_give_the_numbers_of_the_page():
    """With other code than the report's. Of older rows there are results and no predictions."""
    folder = FOLDER.parent / "docs" / "evidence"
    result = json.loads((folder / "trainings.json").read_text())["experiments"]["distillation"]
    truth = {row["task"]: row for row in pq.read_table(folder / "tasks.parquet").to_pylist()}
    accuracy = {}
    for row in pq.read_table(folder / "predictions.parquet").to_pylist():
        assert row["experiment"] == "distillation"
        labels = np.array(truth[row["task"]]["label"])
        right = np.array(row["predicted"]) == labels
        recalls = [right[labels == value].mean() for value in np.unique(labels)]
        accuracy.setdefault(row["arm"], {}).setdefault(row["task"], {})[row["seed"]] = recalls
    for arm, by_task in accuracy.items():
        held = result["arms"][arm]
        trainings = {task: len(seeds) for task, seeds in by_task.items()}
        if trainings == dict.fromkeys(truth, held["seeds"]):
            for task, seeds in by_task.items():
                assert held[task]["value"] == pytest.approx(np.mean(list(seeds.values())))
    checked = 0
    for entry in result["added"]["light masks"] + result["added"]["pooled"]:
        first, second = (accuracy[entry[side]] for side in ("first", "second"))
        differences = []
        for task in truth if entry["of"] == "mean of tasks" else [entry["of"]]:
            one, other = first[task], second[task]
            if min(len(one), len(other)) > 1:  # trainings of one seed are a pair
                common = set(one) & set(other)
                one, other = ({seed: each[seed] for seed in common} for each in (one, other))
            means = [np.mean(list(each.values())) for each in (one, other)]
            differences.append(means[0] - means[1])
        assert entry["value"] == pytest.approx(np.mean(differences))
        checked += 1
    assert checked == 17


def test_the_plan_names_arms_and_tasks_that_there_are():
    import yaml

    plan = yaml.safe_load((FOLDER / "evidence_plan.yaml").read_text())
    own = plan["distillation"]
    students = {f"{teacher}/{name}" for teacher in own["teachers"] for name in own["students"]}
    models = students | set(own["teachers"]) | set(own["alone"]) | {"untrained", "thumbnail"}
    for first, second, *tasks in itertools.chain(own["primary"], *own["added"].values()):
        assert {first, second} <= models
        assert set(tasks) <= set(plan["tasks"])
    for first, second in plan["coreset"]["primary"]:
        assert {first, second} <= set(plan["coreset"]["arms"])
