import hashlib
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from echostill.curation.selection.core import (
    SelectionSettings,
    cluster_scores,
    dual_ranks,
    largest_remainder_quotas,
    ranks_within_clusters,
    resolve_budget,
    select_coreset,
)
from echostill.platform.errors import UsageError
from echostill.platform.tables.schemas import CORESET_SCHEMA


def image_ids(rows):
    return [hashlib.blake2b(str(row).encode(), digest_size=16).hexdigest() for row in range(rows)]


def scores_of(features, mean, spread, ids):
    features = np.asarray(features, dtype=np.float16)
    kind = pa.list_(pa.float16(), features.shape[1])
    return pa.table(
        {
            "image_id": pa.array(ids, pa.string()),
            "feature": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), type=kind),
            "gradient_mean": pa.array(mean, pa.float32()),
            "gradient_std": pa.array(spread, pa.float32()),
        }
    )


def pool_of(rows, per_group=1, dimension=8, seed=0):
    generator = np.random.default_rng(seed)
    ids = image_ids(rows)
    scores = scores_of(
        generator.normal(size=(rows, dimension)),
        generator.random(rows),
        generator.random(rows),
        ids,
    )
    names = [f"clip{row // per_group:04d}" for row in range(rows)]
    return scores, pa.table({"image_id": ids, "group_id": names})


def table_bytes(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 999)),
        max_size=40,
        unique_by=lambda row: row[2],
    ),
    st.booleans(),
)
def test_ranks_against_sorting(rows, descending):
    cluster = np.array([row[0] for row in rows], dtype=np.int32)
    value = np.array([row[1] for row in rows], dtype=np.float32)
    ids = np.array([f"{row[2]:03d}" for row in rows])
    ranks = ranks_within_clusters(cluster, value, ids, descending)
    sign = -1 if descending else 1
    for own in set(cluster.tolist()):
        members = [row for row in range(len(rows)) if cluster[row] == own]
        members.sort(key=lambda row: (sign * float(value[row]), ids[row]))
        assert [int(ranks[row]) for row in members] == list(range(1, len(members) + 1))
    assert ranks.dtype == np.int32


def test_dual_rank_formula_and_ties():
    distance_rank, gradient_rank = np.array([1, 2, 3, 4]), np.array([4, 3, 2, 1])
    size = np.array([41, 41, 41, 41])
    for alpha in (0.0, 0.3, 0.5, 1.0):
        expected = alpha * distance_rank / size + (1 - alpha) * gradient_rank / size
        found = dual_ranks(distance_rank, gradient_rank, size, alpha)
        np.testing.assert_allclose(found, expected, atol=1e-10)
    assert len(set(dual_ranks(distance_rank, gradient_rank, size, 0.5).tolist())) == 1
    # 0.3 x 1 + 0.7 x 4 = 0.3 x 8 + 0.7 x 1: equal on paper, not in floating point.
    pair = dual_ranks(np.array([1, 8]), np.array([4, 1]), np.array([41, 41]), 0.3)
    assert pair[0] == pair[1]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=12))
def test_quotas_for_every_budget(sizes):
    total = sum(sizes)
    for budget in range(total + 1):
        quotas = largest_remainder_quotas(np.array(sizes), budget)
        assert quotas.sum() == budget
        assert np.all(quotas <= sizes)
        assert np.all(quotas >= 0)
        # Hamilton's method never strays from the exact share by a whole place.
        assert all(
            abs(int(q) * total - budget * s) < max(total, 1)
            for q, s in zip(quotas, sizes, strict=True)
        )


def test_quotas_by_hand_ties_and_large_numbers():
    assert largest_remainder_quotas(np.array([1, 1, 1]), 2).tolist() == [1, 1, 0]
    assert largest_remainder_quotas(np.array([5, 3, 2]), 5).tolist() == [3, 1, 1]
    sizes = np.array([1_999_999, 1_000_000, 1])
    assert largest_remainder_quotas(sizes, 2_999_999).tolist() == [1_999_998, 1_000_000, 1]
    assert largest_remainder_quotas(sizes, 3_000_000).tolist() == sizes.tolist()
    with pytest.raises(UsageError, match="cannot choose 4 of 3 images: expected 0 to 3"):
        largest_remainder_quotas(np.array([1, 2]), 4)


def test_budget_forms():
    assert resolve_budget(7, 60) == 7
    assert resolve_budget(0.1, 60) == 6
    assert resolve_budget(0.1, 25) == 3  # 2.5 is rounded half up
    assert resolve_budget(0.001, 60) == 1
    assert resolve_budget(1.0, 60) == 60
    assert resolve_budget(1, 60) == 1
    for wrong in (0, -1, 61, 0.0, 1.5, -0.1, float("nan")):
        with pytest.raises(UsageError, match="60"):
            resolve_budget(wrong, 60)


def test_every_budget_is_met_and_every_column_agrees_with_a_brute_force():
    scores, groups = pool_of(60)
    base = SelectionSettings(method="dual-rank", clusters=5, penalty=0.5, alpha=0.4)
    clustering = cluster_scores(scores, base)
    by_id = {row["image_id"]: row for row in scores.to_pylist()}
    for budget in range(1, 61):
        chosen = base.model_copy(update={"budget": budget})
        table = select_coreset(scores, groups, chosen, clustering)
        assert table.schema.equals(CORESET_SCHEMA)
        assert table["image_id"].to_pylist() == sorted(by_id)
        rows = table.to_pylist()
        assert sum(row["selected"] for row in rows) == budget
        for own in {row["cluster"] for row in rows}:
            members = [row for row in rows if row["cluster"] == own]
            check_cluster(members, by_id, clustering, chosen)


def check_cluster(members, by_id, clustering, chosen):
    size = len(members)
    near = sorted(members, key=lambda row: (row["distance"], row["image_id"]))
    good = sorted(members, key=lambda row: (-row["gradient"], row["image_id"]))
    centre = clustering.centroids[members[0]["cluster"]].astype(np.float64)
    for row in members:
        source = by_id[row["image_id"]]
        feature = np.array(source["feature"], dtype=np.float64)
        cosine = feature @ centre / np.linalg.norm(feature) / np.linalg.norm(centre)
        assert row["distance"] == pytest.approx(1 - cosine, abs=1e-6)
        quality = source["gradient_mean"] - chosen.penalty * source["gradient_std"]
        assert row["gradient"] == pytest.approx(quality, abs=1e-6)
        assert row["cluster_size"] == size
        assert row["distance_rank"] == near.index(row) + 1
        assert row["gradient_rank"] == good.index(row) + 1
        weighted = chosen.alpha * row["distance_rank"] + (1 - chosen.alpha) * row["gradient_rank"]
        assert row["dual_rank"] == pytest.approx(weighted / size, abs=1e-9)
    taken = sorted(members, key=lambda row: (row["dual_rank"], row["image_id"]))
    assert [row["cluster_rank"] for row in taken] == list(range(1, size + 1))
    quota = members[0]["quota"]
    assert all(row["selected"] == (row["cluster_rank"] <= quota) for row in members)
    for row in members:
        check_reason(row, taken)


def check_reason(row, taken):
    words = re.fullmatch(
        r"(not )?selected: (\d+)(st|nd|rd|th) of (\d+) in cluster (\d+), quota (\d+)(.*)",
        row["reason"],
    )
    assert words, row["reason"]
    assert [int(words[part]) for part in (2, 4, 5, 6)] == [
        row[name] for name in ("cluster_rank", "cluster_size", "cluster", "quota")
    ]
    if row["selected"]:
        expected = ""
    elif row["quota"] == 0:
        expected = " leaves it no place"
    elif row["dual_rank"] == taken[row["quota"] - 1]["dual_rank"]:
        expected = " was filled by equal dual ranks with smaller ids"
    else:
        expected = " was filled by better dual ranks"
    assert (words[1] is None) == row["selected"]
    assert words[7] == expected


@pytest.mark.parametrize(
    "chosen",
    [
        SelectionSettings(budget=13),
        SelectionSettings(budget=13, method="random"),
        SelectionSettings(budget=13, max_per_group=1),
    ],
)
def test_order_of_the_rows_does_not_matter(chosen):
    scores, groups = pool_of(60, per_group=4)
    first = table_bytes(select_coreset(scores, groups, chosen))
    assert first == table_bytes(select_coreset(scores, groups, chosen))
    for seed in range(3):
        generator = np.random.default_rng(seed)
        mixed = scores.take(generator.permutation(60))
        pieces = pa.concat_tables([mixed.slice(0, 7), mixed.slice(7, 30), mixed.slice(37)])
        assert first == table_bytes(
            select_coreset(pieces, groups.take(generator.permutation(60)), chosen)
        )


def test_ties_go_by_id():
    ids = image_ids(8)
    scores = scores_of(np.ones((8, 4)), np.ones(8), np.zeros(8), ids)
    groups = pa.table({"image_id": ids, "group_id": ids})
    three = SelectionSettings(method="dual-rank", budget=3, clusters=1)
    rows = select_coreset(scores, groups, three).to_pylist()
    assert [row["cluster_rank"] for row in rows] == list(range(1, 9))
    assert [row["selected"] for row in rows] == [True] * 3 + [False] * 5
    # Both ranks go by id here, so dual ranks differ; with opposite ranks they tie.
    assert rows[3]["reason"].endswith("better dual ranks")
    ids.sort()
    angle = np.linspace(0, 0.5, 8)
    scores = scores_of(np.c_[np.cos(angle), np.sin(angle)], np.linspace(0, 1, 8), np.zeros(8), ids)
    rows = select_coreset(scores, groups, three).to_pylist()
    for row in rows:
        if not row["selected"]:
            last = max(other["dual_rank"] for other in rows if other["selected"])
            tie = row["dual_rank"] == last
            assert row["reason"].endswith("smaller ids" if tie else "better dual ranks")


def test_one_image_and_one_cluster():
    scores, groups = pool_of(1)
    row = select_coreset(scores, groups, SelectionSettings(budget=1)).to_pylist()[0]
    assert row["reason"] == "selected: 1st of 1 in cluster 0, quota 1"
    scores, groups = pool_of(9)
    table = select_coreset(scores, groups, SelectionSettings(budget=4, clusters=1))
    assert set(table["quota"].to_pylist()) == {4}


def test_random_is_uniform_over_the_pool_and_keeps_its_draws():
    scores, groups = pool_of(200)
    chosen = SelectionSettings(budget=50, method="random", seed=3)
    table = select_coreset(scores, groups, chosen)
    rows = table.to_pylist()
    picked = {row["image_id"] for row in rows if row["selected"]}
    assert len(picked) == 50
    assert all(row["selected"] == (row["cluster_rank"] <= row["quota"]) for row in rows)
    assert any("earlier random draws" in row["reason"] for row in rows)
    other = select_coreset(scores, groups, chosen.model_copy(update={"seed": 4})).to_pylist()
    assert picked != {row["image_id"] for row in other if row["selected"]}
    # Fewer clusters change nothing about who is drawn; images that leave free their places only.
    few = select_coreset(scores, groups, chosen.model_copy(update={"clusters": 2})).to_pylist()
    assert picked == {row["image_id"] for row in few if row["selected"]}
    part = select_coreset(scores.slice(0, 150), groups, chosen).to_pylist()
    still = {row["image_id"] for row in part}
    assert picked & still <= {row["image_id"] for row in part if row["selected"]}


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_group_limit_for_every_budget(limit):
    scores, groups = pool_of(60, per_group=5)
    base = SelectionSettings(clusters=5, max_per_group=limit)
    clustering = cluster_scores(scores, base)
    held = 0
    for budget in range(1, 12 * limit + 1):
        chosen = base.model_copy(update={"budget": budget})
        rows = select_coreset(scores, groups, chosen, clustering).to_pylist()
        picked = [row for row in rows if row["selected"]]
        assert len(picked) == budget
        counts = Counter(row["group_id"] for row in picked)
        assert max(counts.values()) <= limit
        for row in rows:
            if "group limit:" in row["reason"]:
                held += 1
                assert not row["selected"]
                assert counts[row["group_id"]] == limit
            beyond = "beyond quota" in row["reason"]
            assert not beyond or row["selected"]
    assert held
    with pytest.raises(UsageError, match=f"largest feasible budget is {12 * limit}"):
        select_coreset(scores, groups, base.model_copy(update={"budget": 12 * limit + 1}))


def test_group_limit_that_binds_nobody_changes_nothing():
    scores, groups = pool_of(40)
    free = select_coreset(scores, groups, SelectionSettings(budget=17))
    limited = select_coreset(scores, groups, SelectionSettings(budget=17, max_per_group=1))
    assert free.equals(limited)


def test_requests_that_cannot_be_met():
    scores, groups = pool_of(10)
    for budget in (0, 11):
        with pytest.raises(UsageError, match="expected an integer from 1 to 10 "):
            select_coreset(scores, groups, SelectionSettings(budget=budget))
    with pytest.raises(UsageError, match=r"1 scored images are not in the pool"):
        select_coreset(scores, groups.slice(1), SelectionSettings())
    with pytest.raises(UsageError, match="occur twice"):
        select_coreset(pa.concat_tables([scores, scores.slice(0, 1)]), groups, SelectionSettings())
    with pytest.raises(UsageError, match="no rows"):
        select_coreset(scores.slice(0, 0), groups, SelectionSettings())
    clustering = cluster_scores(scores.slice(0, 5), SelectionSettings())
    with pytest.raises(UsageError, match="other images"):
        select_coreset(scores, groups, SelectionSettings(budget=1), clustering)


@pytest.mark.parametrize("value", [np.nan, np.inf, None])
def test_unusable_gradients_are_named(value):
    scores, groups = pool_of(10)
    mean = scores["gradient_mean"].to_pylist()
    mean[4] = value
    broken = scores.set_column(2, "gradient_mean", pa.array(mean, pa.float32()))
    with pytest.raises(UsageError, match=f"1 of 10 gradients .*{image_ids(10)[4]}"):
        select_coreset(broken, groups, SelectionSettings())


def test_settings_refuse_what_makes_no_sense():
    with pytest.raises(UsageError, match="Did you mean 'random'"):
        SelectionSettings(method="randm")
    for wrong in ({"alpha": 1.1}, {"penalty": -1}, {"max_per_group": 0}, {"bugdet": 3}):
        with pytest.raises(ValidationError):
            SelectionSettings(**wrong)
    assert isinstance(SelectionSettings(budget=1).budget, int)
    assert isinstance(SelectionSettings(budget=1.0).budget, float)
