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
    assert mine == {"select": {"budget": 6}, "seed": 2}
    assert apply_overrides(document, ["select.budget=8"], None)["select"]["budget"] == 8
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
