"""Ranking by the probe or by the loss, and a page that loads nothing from elsewhere."""

import re

import pytest

from echostill.eval.datasets import TaskSettings
from echostill.jobs.sweeps.comparison import compare, render
from echostill.jobs.sweeps.grid import expand
from echostill.jobs.sweeps.sweep import SweepConfig

HOSTILE = "<script>alert(1)</script>"
TASK = TaskSettings(name=HOSTILE, kind="classification", manifest="liver.csv")


def results(trials, probes, losses):
    return {
        run.name: {
            "made": {"fingerprint": "0"},
            "run": run.name,
            "loss_last": loss,
            "weight_spread": 0.1,
            "curve": [[1, loss + 1], [5, loss]],
            "probe": probe,
        }
        for trial, probe, loss in zip(trials, probes, losses, strict=True)
        for run in trial.runs
    }


@pytest.fixture
def config():
    return SweepConfig(name="s", base={}, grid={"training.steps": (5, 6, 7)}, task=TASK)


def test_the_probe_ranks_and_the_larger_is_better(config):
    trials = expand("s", {}, config.grid)
    probes = [{"k-NN": [0.5, 0.7], "linear probe": [0.9]}, {"k-NN": [0.8, 0.6]}, {"k-NN": [0.1]}]
    table = compare(trials, results(trials, probes, (1.0, 3.0, 0.5)), {}, config)
    assert [line["trial"] for line in table["trials"]] == [trials[k].digest for k in (1, 0, 2)]
    assert table["best"] == {"trial": trials[1].digest, "value": pytest.approx(0.7)}
    first = table["trials"][0]["probes"]["k-NN"]
    assert first["spread"] == pytest.approx(0.1 * 2**0.5)
    assert (table["ranked_by"], table["metric"]) == ("k-NN", "balanced accuracy")


def test_without_a_task_the_smaller_loss_is_better_and_ties_break_by_digest(config):
    config = config.model_copy(update={"task": None})
    trials = expand("s", {}, config.grid)
    table = compare(trials, results(trials, [{}] * 3, (2.0, 1.0, 1.0)), {}, config)
    tied = sorted([trials[1].digest, trials[2].digest])
    assert [line["trial"] for line in table["trials"]] == [*tied, trials[0].digest]
    assert table["ranked_by"] == "final loss"


def test_a_failed_run_is_named_and_the_page_needs_nothing_else(config):
    trials = expand("s", {}, config.grid)
    rows = results(trials, [{"k-NN": [0.5]}] * 3, (1.0, 2.0, 3.0))
    lost = trials[2].runs[0].name
    del rows[lost]
    table = compare(trials, rows, {lost: HOSTILE}, config)
    assert table["trials"][-1]["failed"] == {lost: HOSTILE}
    page = render(table, "1.0")
    assert page == render(table, "1.0")
    assert lost in page
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert trials[0].digest in page


def test_what_needs_no_model_stands_beside_the_trials(config):
    trials = expand("s", {}, config.grid)
    probes = [{"k-NN": [0.5], "linear probe": [0.7]}] * 3
    trivial = {
        "constant": {"constant": [0.5, 0.5]},
        "thumbnail": {"k-NN": [0.6, 0.7], "linear probe": [0.4, 0.2]},
    }
    table = compare(trials, results(trials, probes, (1.0, 2.0, 3.0)), {}, config, trivial)
    page = render(table, "1.0")
    assert (
        "It is not ahead of the constant (0.500). It is not ahead of the thumbnail (0.650)." in page
    )
    rows = {row.split("<")[0]: row for row in page.split('<th scope="row">')[1:]}
    assert re.findall(r"\d+\.\d ± \d+\.\d", rows["constant"]) == ["50.0 ± 0.0"] * 2
    assert re.findall(r"\d+\.\d ± \d+\.\d", rows["thumbnail"]) == ["65.0 ± 7.1", "30.0 ± 14.1"]
    assert "the dashed line is the chance level" in page
    better = compare(trials, results(trials, [{"k-NN": [0.9]}] * 3, (1, 2, 3)), {}, config, trivial)
    assert "not ahead" not in render(better, "1.0")


def test_nothing_finished_still_gives_a_page(config):
    trials = expand("s", {}, config.grid)
    failures = {trial.runs[0].name: "no reason" for trial in trials}
    table = compare(trials, {}, failures, config)
    assert table["best"] is None
    assert "No run finished." in render(table, "1.0")
