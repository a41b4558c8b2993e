"""Rows put together: metrics from predictions, averages, ranks, critical differences."""

import numpy as np
import pytest

from echostill.eval.metrics import balanced_accuracy
from echostill.eval.unius.protocols.measures import Measured, predictions_table
from echostill.eval.unius.summary.page import render
from echostill.eval.unius.summary.report import write_report
from echostill.eval.unius.summary.results import (
    BenchResults,
    average_ranks,
    critical_difference,
)
from echostill.platform.errors import UsageError

GROUPS = 40


def row(task, kind, candidate, seed, measured, table="t1"):
    values = {
        "set": task,
        "task": task,
        "kind": kind,
        "organs": ["liver" if kind == "classification" else "breast"],
        "classes": ["a", "b"],
        "protocol": "frozen",
        "candidate": candidate,
        "seed": seed,
        "table": table,
        "measured": [
            {
                "method": one.method,
                "condition": one.condition,
                "share": one.share,
                "metrics": one.metrics,
            }
            for one in measured
        ],
    }
    return values, predictions_table(measured)


def classified(right, seed, share=1.0, condition="clean"):
    """Predictions of which so large a share is right."""
    random = np.random.default_rng([seed, round(100 * right)])
    labels = np.arange(2 * GROUPS) % 2
    chosen = np.where(random.random(len(labels)) < right, labels, 1 - labels)
    values = np.eye(2)[chosen] * 0.8 + 0.1
    images = tuple(
        {"id": f"{i:03d}", "group": f"g{i // 2}", "target": int(t), "values": list(v)}
        for i, (t, v) in enumerate(zip(labels, values, strict=True))
    )
    metrics = {"balanced_accuracy": balanced_accuracy(labels, chosen), "accuracy": right,
               "calibration_error": 0.1, "recall a": right}  # fmt: skip
    return Measured("linear probe", condition, share, metrics, images)


def segmented(dice):
    random = np.random.default_rng(round(1000 * dice))
    values = np.clip(dice + 0.05 * random.standard_normal((GROUPS, 1)), 0, 1)
    images = tuple(
        {"id": f"{i:03d}", "group": f"g{i}", "target": -1, "values": list(v), "hd95": [3.0]}
        for i, v in enumerate(values)
    )
    return Measured("linear probe", "clean", 1.0, {"dice": float(values.mean())}, images)


def results(costs=None):
    rows = []
    for name, right in {"untrained": 0.55, "student": 0.95}.items():
        for seed in range(4):  # of two trainings nothing could be said
            parts = [classified(right, seed), classified(right - 0.1, seed, 0.5)]
            parts.append(classified(right - 0.2, seed, condition="gain"))
            rows.append(row("liver", "classification", name, seed, parts))
        rows.append(row("lesion", "segmentation", name, 0, [segmented(right - 0.1)]))
    return BenchResults(rows, costs or {})


def test_a_metric_is_remade_from_the_predictions():
    found = results()
    (task,) = found.of("frozen", "classification")
    for name in ("untrained", "student"):
        mean = task.mean(name, "balanced_accuracy")
        assert task.estimates[name].value == pytest.approx(mean)
    (masks,) = found.of("frozen", "segmentation")
    assert masks.estimates["student"].value == pytest.approx(masks.mean("student", "dice"))


def test_a_difference_has_a_word_only_where_it_is_large():
    words = {(d.task.name, d.candidate): d.conclusion.word for d in results().differences()}
    assert words == {("liver", "student"): "ahead", ("lesion", "student"): "ahead"}
    same = [row("liver", "classification", name, 0, [classified(0.7, seed)])
            for name, seed in (("untrained", 1), ("other", 2))]  # fmt: skip
    (one,) = BenchResults(same, {}).differences()
    assert one.conclusion.word == "not distinguished"


def test_an_average_is_of_all_tasks_or_none():
    found = results()
    tasks = found.of("frozen", "classification")
    assert found.average(tasks, "student", "accuracy") == pytest.approx(0.95)
    assert found.average(tasks, "student", "accuracy", share=0.5) == pytest.approx(0.85)
    assert found.average(found.tasks, "student", "accuracy") is None


def test_rows_of_another_preparation_are_left_out():
    rows = [
        row("liver", "classification", "a", seed, [classified(0.7, seed)], table)
        for seed, table in ((0, "new"), (1, "new"), (0, "old"))
    ]
    found = BenchResults(rows, {})
    assert found.outdated == 1
    assert len(found.tasks[0].rows["a"]) == 2
    assert "1 rows of an earlier preparation" in render("x", found)


# Demsar 2006, table 5a: q of 5% for 2, 5 and 10 classifiers.
@pytest.mark.parametrize(("count", "quantile"), [(2, 1.960), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_demsars(count, quantile):
    wanted = quantile * np.sqrt(count * (count + 1) / (6 * 14))
    assert critical_difference(count, 14) == pytest.approx(wanted, abs=2e-3)


def test_ranks_share_ties():
    values = np.array([[0.9, 0.8, 0.8], [0.5, 0.7, 0.6]])
    assert average_ranks(values).tolist() == [2.0, 1.75, 2.25]


def test_the_page_says_what_is_of_other_splits_and_is_the_same_each_time():
    cost = {"parameters": 10, "gflops": 0.1, "latency_ms": 2.0, "image_size": 32, "device": "CPU"}
    costs = {"untrained": cost, "student": {**cost, "gflops": 0.2}}
    page = render("mine", results(costs))
    assert page == render("mine", results(costs))
    assert "84.91 (other splits)" in page
    assert "85.78 (other splits)" in page
    assert "2 are ahead" in page
    for title in ("Paired differences", "Ranks over tasks", "Label efficiency", "Robustness"):
        assert title in page
    assert page.count("<svg") >= 5


def test_a_name_without_results_is_refused(tmp_path):
    with pytest.raises(UsageError, match="has no results: run `echostill bench run`"):
        write_report(str(tmp_path), "none")
