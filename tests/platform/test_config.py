import pytest
from pydantic import Field

from echostill.platform.config import (
    Config,
    StageConfig,
    apply_overrides,
    execution,
    load,
    resolve,
    result_relevant,
)
from echostill.platform.errors import UsageError


class Inner(Config):
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


class Select(StageConfig):
    budget: int = Field(10, ge=1)
    inner: Inner = Inner()
    workers: int = execution(1, "workers")


def test_flat_file_belongs_to_the_stage(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("store: a\nbudget: 7\ninner: {sizes: [3, 4, 5]}\n")
    config = load(Select, "select", str(path), ["inner.rate=0.5"])
    assert (config.store, config.budget, config.inner.rate) == ("a", 7, 0.5)
    assert config.inner.sizes == (3, 4, 5)


def test_sections_share_the_outer_keys():
    document = {"store": "a", "seed": 3, "teacher": {"model": "usfm"}, "select": {"budget": 5}}
    config = resolve(Select, "select", document)
    assert (config.store, config.seed, config.budget) == ("a", 3, 5)


def test_overrides_reach_the_stage_or_a_named_section():
    document = {"select": {"budget": 5}, "seed": 1}
    mine = apply_overrides(document, ["budget=6", "seed=2"], "select")
    assert resolve(Select, "select", mine) == Select(budget=6, seed=2)
    named = apply_overrides(document, ["select.budget=8"], None)
    assert resolve(Select, "select", named).budget == 8
    assert document["select"]["budget"] == 5


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"budgett": 3}, ["budgett", "Did you mean 'budget'"]),
        ({"select": {"inner": {"rat": 1.0}}}, ["inner.rat", "Did you mean 'rate'"]),
        ({"select": {}, "sed": 3}, ["sed", "Did you mean 'seed'"]),
        ({"budget": 0}, ["budget", "greater than or equal to 1"]),
        ({"inner": {"rate": "1e-4"}}, ["inner.rate", "0.0001"]),
        ({"budget": "many"}, ["budget", "'many'"]),
    ],
)
def test_wrong_keys_and_values_are_named(document, words):
    with pytest.raises(UsageError) as raised:
        resolve(Select, "select", document)
    assert raised.value.exit_code == 2
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UsageError, match=r"Did you mean 'config\.yaml'"):
        load(Select, "select", str(tmp_path / "confg.yaml"))


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_files_that_are_not_mappings(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError):
        load(Select, "select", str(path))


@pytest.mark.parametrize("text", ["budget", "=3", "inner.rate.x=1"])
def test_malformed_overrides(text):
    with pytest.raises(UsageError):
        apply_overrides({"inner": {"rate": 0.1}}, [text], "select")


def test_execution_fields_stay_out_of_what_a_result_depends_on():
    values = result_relevant(Select(store="x", workers=8))
    assert values == {"seed": 0, "budget": 10, "inner": {"rate": 0.1, "sizes": [1, 2]}}


def test_configurations_are_frozen():
    with pytest.raises(ValueError):
        Select().budget = 3


class Nested(Config):
    inner: Inner = Inner(rate=0.3)
    outer: int = 1


class Paced(StageConfig):
    inner: Inner = Inner(rate=0.7)
    nested: Nested = Nested(inner=Inner(sizes=(9,)), outer=2)


def test_a_section_given_in_part_keeps_the_rest_of_its_default():
    config = load(Paced, "select", None, ["inner.sizes=[5]", "nested.inner.rate=0.9"])
    assert config.inner == Inner(rate=0.7, sizes=(5,))
    assert config.nested == Nested(inner=Inner(rate=0.9, sizes=(9,)), outer=2)
    assert load(Paced, "select", None, ["nested.outer=3"]).nested.inner == Inner(sizes=(9,))
    with pytest.raises(UsageError, match=r"unknown key 'inner\.rat'"):
        load(Paced, "select", None, ["inner.rat=0.9"])


def test_one_training_key_leaves_the_stage_its_pace():
    from echostill.curation import ScoreConfig
    from echostill.distill import DistillConfig

    training = load(DistillConfig, "distill", None, ["training.workers=4"]).training
    assert (training.workers, training.steps, training.batch_size) == (4, 20_000, 1024)
    proxy = load(ScoreConfig, "score", None, ["proxy.training.steps=7"]).proxy
    assert (proxy.training.steps, proxy.training.batch_size) == (7, 256)
    preset = {"students": [{"name": "a", "objective": {"preset": "mim-only"}}]}
    assert not resolve(DistillConfig, "distill", preset).students[0].objective.distil
