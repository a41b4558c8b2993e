"""A grid becomes runs: every combination once, checked before anything runs."""

import itertools

import pytest

from echostill.jobs.sweeps.grid import assign, expand
from echostill.platform.errors import UsageError

BASE = {"student": "tinyusfm-micro", "training": {"steps": 7}}


def test_every_combination_once():
    grid = {"training.learning_rate": (0.1, 0.2), "objective.beta": (1.0, 2.0, 3.0)}
    trials = expand("s", BASE, grid)
    seen = [(t.runs[0].config.training.learning_rate, _objective(t).beta) for t in trials]
    assert seen == list(itertools.product((0.1, 0.2), (1.0, 2.0, 3.0)))
    assert all(trial.runs[0].config.training.steps == 7 for trial in trials)
    assert trials[1].label == "learning_rate=0.1, beta=2.0"
    assert len({trial.digest for trial in trials}) == 6


def _objective(trial):
    return trial.runs[0].config.students[0].objective


def test_objective_reaches_every_student_and_a_preset_fills_in():
    students = [{"name": "a"}, {"name": "b", "objective": {"beta": 2.0}}]
    (trial,) = expand("s", {**BASE, "students": students}, {"objective.preset": ("fixed-weight",)})
    for run, beta in zip(trial.runs, (1.0, 2.0), strict=True):
        objective = run.config.students[0].objective
        assert (objective.weighting, objective.beta) == ("fixed", beta)


def test_a_run_per_student_and_seed_named_by_what_it_is():
    base = {**BASE, "students": [{"name": "a"}, {"name": "b"}], "seeds": [4, 5]}
    (trial,) = expand("mine", base, {"training.steps": (9,)})
    wanted = [f"mine-{trial.digest}-{name}-{seed}" for name in "ab" for seed in (4, 5)]
    assert [run.name for run in trial.runs] == wanted
    # The name of the folder is what distillation itself makes of the configuration.
    for run in trial.runs:
        assert [made.name for made in run.config.runs()] == [run.name]


def test_a_grown_grid_keeps_its_runs_and_a_changed_base_makes_new_ones():
    few = expand("s", BASE, {"training.learning_rate": (0.1, 0.2)})
    more = expand("s", BASE, {"training.learning_rate": (0.3, 0.1, 0.2)})
    assert {trial.digest for trial in few} < {trial.digest for trial in more}
    other = expand("s", {**BASE, "training": {"steps": 8}}, {"training.learning_rate": (0.1, 0.2)})
    assert not {trial.digest for trial in few} & {trial.digest for trial in other}
    threads = {**BASE, "training": {"steps": 7, "threads": 3}}  # only how it runs
    same = expand("s", threads, {"training.learning_rate": (0.1, 0.2)})
    assert [trial.digest for trial in same] == [trial.digest for trial in few]


def test_the_base_is_left_as_it_was():
    base = {"training": {"steps": 7}, "students": [{"name": "a"}]}
    expand("s", base, {"training.steps": (8,), "objective.beta": (2.0,)})
    assert base == {"training": {"steps": 7}, "students": [{"name": "a"}]}


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"trainin.steps": (1,)}, "trainin.*Did you mean 'training'"),
        ({"training.steps": (0,)}, "training.steps"),
        ({"training.steps.more": (1,)}, "goes into 'steps'"),
        ({"students.3.name": ("a",)}, "not one of 1 items"),
        ({"training.steps": (5, 5)}, "are the same: steps=5"),
        ({"objective.preset": ("tinyusfm", "fixed-weigth")}, "Did you mean 'fixed-weight'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(grid, words):
    with pytest.raises(UsageError, match=words):
        expand("s", BASE, grid)


def test_a_value_is_set_where_the_path_leads():
    document = {"a": [{"b": 1}, {"b": 2}]}
    assign(document, ["a", "1", "b"], 3)
    assign(document, ["c", "d"], 4)
    assign(document, ["a", "0"], 5)
    assert document == {"a": [5, {"b": 3}], "c": {"d": 4}}
