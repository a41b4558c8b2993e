"""Every method through the one interface: exact budgets, pins, exclusions, balance, limits."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.selection.core import SelectionSettings, select_coreset, select_rows
from echostill.curation.selection.explain.explain import explain, explanation
from echostill.curation.selection.methods import METHODS
from echostill.curation.selection.quotas import share
from echostill.platform.errors import UsageError

pytestmark = pytest.mark.slow

ROWS = 72
IDS = [f"{row * 0x9E3779B9 % 2**32:08x}{row:024x}" for row in range(ROWS)]
GENERATOR = np.random.default_rng(4)
FEATURES = GENERATOR.normal(size=(ROWS, 6)).astype(np.float16)
FEATURES[5::9] = FEATURES[::9]
SCORES = pa.table(
    {
        "image_id": IDS,
        "gradient_mean": pa.array(GENERATOR.random(ROWS), pa.float32()),
        "gradient_std": pa.array(GENERATOR.random(ROWS), pa.float32()),
    }
)
ORGANS = ["liver"] * 50 + ["heart"] * 16 + [""] * 6
POOL = pa.table(
    {
        "image_id": IDS,
        "group_id": [f"clip{row // 6}" for row in range(ROWS)],
        "organ": ORGANS,
        "frame": pa.array(range(ROWS), pa.int32()),
    }
)
ORGAN = dict(zip(IDS, ORGANS, strict=True))
EXCLUDED = pa.table({"image_id": IDS[3:12], "reason": ["near-duplicate of x"] * 9})
PINNED = pa.table({"image_id": IDS[20:23] + IDS[66:68], "reason": ["teaching case"] * 4 + [None]})
# The methods as they are, and over the pool or inside clusters where that is the other way.
VARIANTS = [(name, None) for name in METHODS] + [
    (name, not method.blocked) for name, method in METHODS.items() if name != "hierarchical"
]


def rows_of(method="dual-rank", blocked=None, **keys):
    keys = {"budget": 20, "clusters": 5, "method": method, "blocked": blocked, **keys}
    return select_rows(FEATURES, SCORES, POOL, keys.pop("budget"), **keys).to_pylist()


@pytest.mark.parametrize(("method", "blocked"), VARIANTS)
def test_exact_budgets_with_pins_and_exclusions(method, blocked):
    held, out = set(PINNED["image_id"].to_pylist()), set(EXCLUDED["image_id"].to_pylist())
    for budget in (5, 20, 41, ROWS - 9):
        rows = rows_of(method, blocked, budget=budget, excluded=EXCLUDED, pinned=PINNED)
        picked = {row["image_id"] for row in rows if row["selected"]}
        assert len(picked) == budget
        assert held <= picked
        assert not out & picked
        for row in rows:
            assert row["selected"] == (row["cluster_rank"] <= row["quota"])
            if row["image_id"] in out:
                assert row["reason"] == "not selected: excluded, near-duplicate of x"
                assert row["distance_rank"] >= 1
            if row["image_id"] in held:
                said = ", teaching case; " if row["image_id"] != IDS[67] else "; "
                assert row["reason"].startswith(f"selected: pinned{said}")
        quotas = {(row["cluster"], row["stratum"]): row["quota"] for row in rows}
        assert sum(quotas.values()) == budget


@pytest.mark.parametrize(("method", "blocked"), VARIANTS)
def test_the_order_of_the_rows_does_not_matter(method, blocked):
    keys = {"clusters": 5, "method": method, "blocked": blocked, "excluded": EXCLUDED}
    keys |= {"pinned": PINNED, "balance": "organ", "max_per_group": 4}
    first = select_rows(FEATURES, SCORES, POOL, 25, **keys)
    mixed = np.random.default_rng(1).permutation(ROWS)
    again = select_rows(FEATURES[mixed], SCORES.take(mixed), POOL.take(mixed[::-1]), 25, **keys)
    assert first.equals(again)
    keys |= {"excluded": EXCLUDED.take([8, 3, 0, 1, 2, 4, 5, 6, 7])}
    assert first.equals(select_rows(FEATURES, SCORES, POOL, 25, **keys))


@pytest.mark.parametrize(("method", "blocked"), VARIANTS)
def test_group_limits_with_pins(method, blocked):
    rows = rows_of(method, blocked, budget=23, max_per_group=2, pinned=PINNED, excluded=EXCLUDED)
    counts = Counter(row["group_id"] for row in rows if row["selected"])
    assert sum(counts.values()) == 23
    # Three pins of one clip stay although the limit is two; nothing joins them.
    assert counts["clip3"] == 3
    assert max(count for group, count in counts.items() if group != "clip3") == 2


@pytest.mark.parametrize(("method", "blocked"), VARIANTS)
def test_balance_shares_the_budget_among_the_values_first(method, blocked):
    for rule in ("water-filling", "square-root", "proportional"):
        rows = rows_of(method, blocked, budget=30, balance="organ", balance_quota=rule)
        found = Counter(ORGAN[row["image_id"]] for row in rows if row["selected"])
        names = sorted(set(ORGANS))
        expected = share(np.array([ORGANS.count(name) for name in names]), 30, rule)
        assert [found[name] for name in names] == expected.tolist()
        assert all(row["stratum"] == ORGAN[row["image_id"]] for row in rows)
        cells = Counter((row["cluster"], row["stratum"]) for row in rows)
        for row in rows:
            assert 1 <= row["cluster_rank"] <= cells[row["cluster"], row["stratum"]]
            assert f" of organ '{row['stratum']}'" in row["reason"]


@pytest.mark.parametrize("rule", ["proportional", "square-root", "water-filling"])
def test_cluster_quotas_are_shared_as_if_the_excluded_were_not_there(rule):
    rows = rows_of(budget=30, quota=rule, excluded=EXCLUDED)
    out = set(EXCLUDED["image_id"].to_pylist())
    sizes = Counter(row["cluster"] for row in rows if row["image_id"] not in out)
    expected = share(np.array([sizes[cluster] for cluster in range(5)]), 30, rule)
    quotas = {row["cluster"]: row["quota"] for row in rows}
    assert [quotas[cluster] for cluster in range(5)] == expected.tolist()
    members = Counter(row["cluster"] for row in rows)
    assert all(row["cluster_size"] == members[row["cluster"]] for row in rows)


def test_exclusions_leave_clusters_and_ranks_as_they_are():
    kept = ("cluster", "distance", "distance_rank", "gradient_rank", "dual_rank")
    free, without = rows_of(), rows_of(excluded=EXCLUDED)
    for one, other in zip(free, without, strict=True):
        assert {name: one[name] for name in kept} == {name: other[name] for name in kept}


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_pins_and_exclusions(data):
    method, blocked = data.draw(st.sampled_from(VARIANTS))
    state = data.draw(st.lists(st.sampled_from("..-+"), min_size=ROWS, max_size=ROWS))
    out = [IDS[row] for row in range(ROWS) if state[row] == "-"]
    held = [IDS[row] for row in range(ROWS) if state[row] == "+"]
    budget = data.draw(st.integers(max(len(held), 1), ROWS - len(out)))
    balance = data.draw(st.sampled_from([None, "organ", "frame"]))
    rows = rows_of(
        method,
        blocked,
        budget=budget,
        balance=balance,
        excluded=pa.table({"image_id": pa.array(out, pa.string())}),
        pinned=pa.table({"image_id": pa.array(held, pa.string())}),
    )
    picked = {row["image_id"] for row in rows if row["selected"]}
    assert len(picked) == budget
    assert set(held) <= picked
    assert not set(out) & picked


def test_unblocked_methods_take_the_best_of_the_pool():
    best = sorted(rows_of("far", False), key=lambda row: (-row["distance"], row["image_id"]))
    assert [row["selected"] for row in best] == [True] * 20 + [False] * (ROWS - 20)
    best = sorted(rows_of("gradient", False), key=lambda row: (-row["gradient"], row["image_id"]))
    assert [row["selected"] for row in best] == [True] * 20 + [False] * (ROWS - 20)


def test_blocked_methods_choose_inside_each_cluster_as_in_a_pool_of_its_own():
    rows = rows_of("k-center", True)
    place = {image_id: row for row, image_id in enumerate(IDS)}
    for cluster in range(5):
        members = [row for row in rows if row["cluster"] == cluster]
        own = [place[row["image_id"]] for row in members]
        alone = select_rows(
            FEATURES[own],
            SCORES.take(own),
            POOL,
            max(members[0]["quota"], 1),
            clusters=1,
            method="k-center",
        ).to_pylist()
        if members[0]["quota"]:
            assert [row["selected"] for row in alone] == [row["selected"] for row in members]


def test_requests_that_cannot_be():
    for keys, message in (
        ({"budget": 4, "pinned": PINNED}, "budget 4 is smaller than the 5 pinned"),
        ({"budget": 70, "excluded": EXCLUDED}, "of 72 scored images 9 are excluded"),
        ({"pinned": PINNED, "excluded": PINNED.slice(2, 1)}, f"pinned and excluded: {IDS[22]}"),
        ({"balance": "orgn"}, "no column 'orgn' to balance by. Did you mean 'organ'"),
        ({"max_per_group": 1, "pinned": PINNED}, "largest feasible budget is 15"),
        ({"quota": "cubic"}, "quota"),
        ({"methd": "random"}, "Did you mean 'method'"),
        ({"method": "herdin"}, "Did you mean 'herding'"),
    ):
        keys = {"budget": 20, **keys}
        with pytest.raises(UsageError, match=message):
            select_rows(FEATURES, SCORES, POOL, keys.pop("budget"), **keys)
    with pytest.raises(UsageError, match="no column 'feature'"):
        select_coreset(SCORES, POOL, SelectionSettings(budget=3))


def test_why_words_pins_and_exclusions():
    chosen = SelectionSettings(budget=20, clusters=5, balance="organ")
    table = select_rows(
        FEATURES, SCORES, POOL, 20, clusters=5, balance="organ", excluded=EXCLUDED, pinned=PINNED
    )
    out = explanation(IDS[3], table, None, chosen)
    assert (out["decided"], out["taken_by"]) == ("excluded", [])
    text = explain(IDS[3], table, None, chosen)
    assert "rank           none: excluded\n" in text
    assert "chosen instead" not in text
    text = explain(IDS[20], table, None, chosen)
    assert ", pinned\n" in text
    assert "reason         selected: pinned, teaching case; " in text
    for row in table.to_pylist():
        found = explanation(row["image_id"], table, None, chosen)
        after = found["next_not_chosen"]
        if after:  # never one that could not have been chosen
            assert after["image_id"] not in EXCLUDED["image_id"].to_pylist()
        alike = [
            r
            for r in table.to_pylist()
            if (r["cluster"], r["stratum"]) == (row["cluster"], row["stratum"])
        ]
        assert found["members"] == len(alike)
        assert found["cluster_selected"] == sum(r["selected"] for r in alike)
        # A text of ours in a reason of theirs must not be taken for the group limit.
        assert not row["selected"] or not found["taken_by"]


@pytest.mark.parametrize("fusion", ["sum", "product", "max", "two-stage"])
def test_why_writes_the_formula_of_each_fusion(fusion):
    chosen = SelectionSettings(budget=20, clusters=5, fusion=fusion, alpha=0.25)
    table = select_rows(FEATURES, SCORES, POOL, 20, clusters=5, fusion=fusion, alpha=0.25)
    for row in table.to_pylist():
        line = next(
            line
            for line in explain(row["image_id"], table, None, chosen).splitlines()
            if line.strip().startswith("dual rank")
        )
        value, _, formula = line.split(maxsplit=2)[2].partition(" = ")
        computed = formula.partition(", beyond")[0].replace(" x ", " * ").replace("^", "**")
        assert eval(computed) == pytest.approx(float(value), abs=1e-3)


def test_trimmed_rows_say_so():
    rows = rows_of(trim=0.2)
    trimmed = [row for row in rows if "outlier of the cluster" in row["reason"]]
    assert trimmed
    assert all(row["gradient_rank"] <= 0.2 * row["cluster_size"] for row in trimmed)
