import pytest

from echostill.curation.selection import settings as module
from echostill.curation.selection.methods import METHODS
from echostill.curation.selection.settings import SelectionSettings, check_limits, operations
from echostill.platform.errors import UsageError

MILLIONS = (3_000_000, 768)


def of(**keys):
    return SelectionSettings.model_validate({"budget": 200_000, **keys})


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_takes_three_million_or_says_how(method):
    if not METHODS[method].compares or method == "coverage":  # which compares inside cells
        check_limits(of(method=method), *MILLIONS)
        return
    with pytest.raises(UsageError, match="above operation_limit") as refused:
        check_limits(of(method=method), *MILLIONS)
    assert f"'{method}' over 3000000 images of dimension 768" in str(refused.value)
    assert "add blocked=true" in str(refused.value)
    check_limits(of(method=method, blocked=True), *MILLIONS)


def test_the_way_out_is_only_shown_where_it_leads_out():
    with pytest.raises(UsageError, match="Use more clusters, raise operation_limit"):
        check_limits(of(method="d2", blocked=True, clusters=2), *MILLIONS)
    with pytest.raises(UsageError, match="Use more clusters, raise operation_limit"):
        check_limits(of(method="d2", operation_limit=1e9), *MILLIONS)
    check_limits(of(method="d2", blocked=True, clusters=2, operation_limit=1e17), *MILLIONS)


def test_memory_is_looked_at_too(monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda: 10**9)
    few = of(method="k-center", budget=10)
    with pytest.raises(UsageError, match=r"needs about 36.9 GB of memory, but 1.0 GB is free"):
        check_limits(few, *MILLIONS)
    check_limits(of(method="k-center", budget=10, blocked=True), *MILLIONS)


def test_operations_grow_as_the_formulas_do():
    chosen = of(method="d2", budget=100)
    one = operations(chosen, 1000, 8, blocked=False)
    assert operations(chosen, 2000, 8, blocked=False) == 4 * one
    chosen = of(method="herding", budget=100)
    one = operations(chosen, 1000, 8, blocked=False)
    assert operations(chosen, 2000, 8, blocked=False) == 2 * one
    assert operations(of(method="random"), *MILLIONS, blocked=False) == 0


def test_keys_that_contradict_each_other():
    with pytest.raises(UsageError, match="chooses over the whole pool: add blocked=true"):
        of(method="random", quota="square-root")
    assert of(method="random", quota="square-root", blocked=True).rule == "square-root"
    with pytest.raises(UsageError, match="down its tree"):
        of(method="hierarchical", blocked=False)
    with pytest.raises(UsageError, match="down its tree"):
        of(method="hierarchical", quota="proportional")
    assert not of().inside_clusters
    assert of(method="dual-rank").inside_clusters
    assert not of(method="k-center").inside_clusters
