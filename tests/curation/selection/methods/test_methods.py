"""Every method against a brute force that follows its formula, on small blocks with ties."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from echostill.curation.selection.features import FeatureRows
from echostill.curation.selection.methods import METHODS, Block, Pool
from echostill.curation.selection.methods.hierarchy import cluster_tree
from echostill.curation.selection.methods.similarity import (
    GRAM_ROWS,
    Similarity,
    nearest_neighbours,
)
from echostill.curation.selection.ranking import dual_ranks, ranks_within_clusters
from echostill.curation.selection.settings import SelectionSettings

ROWS = 40


def pool_of(rows=ROWS, clusters=1, seed=0, duplicates=True, pins=(), dimension=6):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, dimension)).astype(np.float16)
    quality = generator.gamma(2.0, size=rows).astype(np.float32)
    cluster = np.sort(generator.integers(0, clusters, rows)).astype(np.int32)
    distance = generator.random(rows).astype(np.float32)
    if duplicates:
        features[1::4], quality[1::4], distance[1::4] = features[::4], quality[::4], distance[::4]
    size = np.bincount(cluster)[cluster]
    place = np.arange(rows)
    near = ranks_within_clusters(cluster, distance, place)
    steep = ranks_within_clusters(cluster, quality, place, descending=True)
    pinned = np.zeros(rows, bool)
    pinned[list(pins)] = True
    return Pool(
        ids=pa.array([f"{row:04d}" for row in range(rows)]),
        cluster=cluster,
        size=size,
        distance=distance,
        quality=quality,
        distance_rank=near,
        gradient_rank=steep,
        dual_rank=dual_ranks(near, steep, size, 0.5),
        pinned=pinned,
        seed=3,
        group=place,
        flagged=np.zeros(rows, bool),
        features=FeatureRows(features, place),
    )


def chosen(method, pool, count, rows=None, **keys):
    """The rows that a method takes first, in order, pins before all."""
    block = Block(pool, np.arange(len(pool.ids)) if rows is None else rows)
    priority = METHODS[method].order(
        block, count, SelectionSettings.model_validate({"method": method, **keys})
    )
    assert priority.shape == (len(block),)
    assert not np.isnan(priority).any()
    priority = np.where(block.pinned, -np.inf, priority)
    return np.argsort(priority, kind="stable")[:count].tolist()


def unit(pool):
    exact = pool.features.array.astype(np.float64)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True)


def first_best(values, allowed, decimals=9):
    """The smallest value's row; equal on paper is equal here, and goes to the smaller row."""
    return min(allowed, key=lambda row: (round(float(values[row]), decimals), row))


@pytest.mark.parametrize("pins", [(), (7, 30)])
@pytest.mark.parametrize("seed", range(3))
def test_k_center(pins, seed):
    pool = pool_of(seed=seed, pins=pins)
    z = unit(pool)
    picked = list(pins)
    if not picked:
        picked = [first_best(-z @ z.mean(axis=0), range(ROWS))]
    while len(picked) < 15:
        nearest = np.array([min(1 - z[row] @ z[p] for p in picked) for row in range(ROWS)])
        picked.append(first_best(-nearest, [row for row in range(ROWS) if row not in picked]))
    assert chosen("k-center", pool, 15) == picked


@pytest.mark.parametrize("seed", range(3))
def test_k_center_radius_is_at_most_twice_the_best(seed):
    pool = pool_of(rows=11, seed=seed, duplicates=False)
    z = unit(pool)
    apart = np.sqrt(np.maximum(2 - 2 * z @ z.T, 0))
    best = min(
        apart[:, list(centres)].min(axis=1).max()
        for centres in itertools.combinations(range(11), 3)
    )
    assert apart[:, chosen("k-center", pool, 3)].min(axis=1).max() <= 2 * best + 1e-9


@pytest.mark.parametrize("pins", [(), (7, 30)])
@pytest.mark.parametrize("seed", range(3))
def test_herding(pins, seed):
    pool = pool_of(seed=seed, pins=pins)
    z = unit(pool)
    picked = list(pins)
    while len(picked) < 15:
        wanted = (len(picked) + 1) * z.mean(axis=0) - z[picked].sum(axis=0)
        length = ((wanted - z) ** 2).sum(axis=1)
        picked.append(first_best(length, [r for r in range(ROWS) if r not in picked], 8))
    assert chosen("herding", pool, 15) == picked
    # The mean of the chosen is nearer to the mean than that of most random choices.
    if not pins:
        generator = np.random.default_rng(seed)
        error = np.linalg.norm(z[picked].mean(axis=0) - z.mean(axis=0))
        others = [
            np.linalg.norm(z[generator.choice(ROWS, 15, replace=False)].mean(0) - z.mean(0))
            for _ in range(50)
        ]
        assert error < np.quantile(others, 0.1)


def neighbours_by_hand(z, count):
    cosine = np.round(z @ z.T, 12)
    found = []
    for row in range(len(z)):
        others = [other for other in range(len(z)) if other != row]
        found.append(sorted(others, key=lambda o: (-cosine[row, o], o))[:count])
    return np.array(found), cosine


@pytest.mark.parametrize("pins", [(), (7, 30)])
@pytest.mark.parametrize("seed", range(3))
def test_facility_location_is_the_greedy_choice(pins, seed):
    pool = pool_of(seed=seed, pins=pins)
    near, cosine = neighbours_by_hand(unit(pool), 5)
    covers = np.zeros((ROWS, ROWS))
    for row in range(ROWS):
        covers[row, near[row]] = np.maximum(cosine[row, near[row]], 0)
        covers[row, row] = 1.0
    picked = list(pins)
    while len(picked) < 15:
        now = covers[:, picked].max(axis=1) if picked else np.zeros(ROWS)
        gain = np.maximum(covers - now[:, None], 0).sum(axis=0)
        picked.append(first_best(-gain, [row for row in range(ROWS) if row not in picked]))
    assert chosen("facility-location", pool, 15, graph={"neighbours": 5}) == picked


@pytest.mark.parametrize("pins", [(), (7, 30)])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_d2(pins, gamma):
    pool = pool_of(pins=pins)
    z = unit(pool)
    near, cosine = neighbours_by_hand(z, 5)
    apart = np.sqrt(np.maximum(2 - 2 * cosine, 0))
    start = pool.quality.astype(np.float64) / pool.quality.max()
    score = np.array(
        [start[i] + sum(np.exp(-apart[i, j]) * start[j] for j in near[i]) for i in range(ROWS)]
    )
    picked = []

    def choose(row):
        picked.append(row)
        for other in near[row]:
            score[other] -= np.exp(-gamma * apart[row, other]) * score[row]

    for row in pins:
        choose(row)
    while len(picked) < 20:
        choose(first_best(-score, [row for row in range(ROWS) if row not in picked]))
    found = chosen("d2", pool, 20, graph={"neighbours": 5, "gamma": gamma})
    assert found == picked


def test_d2_takes_negative_scores():
    pool = pool_of()
    pool.quality[:] -= 3.0
    assert len(set(chosen("d2", pool, 12))) == 12


@pytest.mark.parametrize("count", [1, 7, 20, 38, 40])
@pytest.mark.parametrize("pins", [(), (0, 1, 2, 3, 33)])
def test_ccs(count, pins):
    if count < len(pins):
        return
    pool = pool_of(pins=pins, duplicates=False)
    found = chosen("ccs", pool, count, ccs={"drop": 0.2, "strata": 4})
    assert len(set(found)) == count
    assert set(pins) <= set(found)
    hardest = np.argsort(-pool.quality, kind="stable")
    dropped = set(hardest[: min(8, ROWS - count)].tolist()) - set(pins)
    assert not dropped & set(found)
    kept = pool.quality[[row for row in range(ROWS) if row not in set(hardest[:8].tolist())]]
    if pins or count > 32:
        return
    edges = np.linspace(kept.min(), kept.max(), 5)
    stratum = np.clip(np.searchsorted(edges, pool.quality, side="right") - 1, 0, 3)
    members = {
        s: [r for r in range(ROWS) if stratum[r] == s and r not in dropped] for s in range(4)
    }
    taken = {s: [r for r in found if stratum[r] == s] for s in range(4)}
    level = max(len(rows) for rows in taken.values())
    for s, rows in members.items():
        # Equal shares, or all there is; and inside a stratum the smallest draws.
        assert len(taken[s]) >= min(level - 1, len(rows))
        draws = sorted(rows, key=lambda row: pool.draws[row])
        assert set(taken[s]) == set(draws[: len(taken[s])])


@pytest.mark.parametrize(("keep", "sign"), [("hard", -1), ("easy", 1)])
def test_ssl_prototypes(keep, sign):
    pool = pool_of(clusters=4, duplicates=False)
    pool.distance[pool.cluster == 0] *= 0.01  # would be left out, or take all
    count = 16
    found = set(chosen("ssl-prototypes", pool, count, prototypes={"keep": keep, "floor": 0.5}))
    best = sorted(range(ROWS), key=lambda row: sign * pool.distance[row])
    assert found != set(best[:count])  # the floor shows
    sizes = np.bincount(pool.cluster)
    held = set()
    for cluster in range(4):
        members = [row for row in best if pool.cluster[row] == cluster]
        quota = count * sizes[cluster] / ROWS
        held |= set(members[: int(0.5 * np.floor(quota))])
    assert held <= found
    without = chosen("ssl-prototypes", pool, count, prototypes={"keep": keep, "floor": 0.0})
    assert without == best[:count]


def test_near_far_moderate_gradient():
    pool = pool_of(clusters=4)
    rows = range(ROWS)
    assert chosen("near", pool, ROWS) == sorted(rows, key=lambda r: (pool.distance[r], r))
    assert chosen("far", pool, ROWS) == sorted(rows, key=lambda r: (-pool.distance[r], r))
    assert chosen("gradient", pool, ROWS) == sorted(rows, key=lambda r: (-pool.quality[r], r))
    middle = {c: np.median(pool.distance[pool.cluster == c].astype(float)) for c in range(4)}
    off = [abs(float(pool.distance[r]) - middle[pool.cluster[r]]) for r in rows]
    assert chosen("moderate", pool, ROWS) == sorted(rows, key=lambda r: (off[r], r))


def test_outliers_are_taken_last():
    pool = pool_of(clusters=2)
    order = chosen("dual-rank", pool, ROWS, trim=0.2)
    limit = {c: int(0.2 * (pool.cluster == c).sum()) for c in range(2)}
    outliers = {r for r in range(ROWS) if pool.gradient_rank[r] <= limit[pool.cluster[r]]}
    assert outliers
    assert set(order[-len(outliers) :]) == outliers
    rest = [row for row in order if row not in outliers]
    assert rest == sorted(rest, key=lambda row: (pool.dual_rank[row], row))


def test_draws_follow_the_id_and_the_seed():
    pool, other = pool_of(), pool_of(rows=10)
    assert np.array_equal(pool.draws[:10], other.draws)
    assert pool.draws.min() >= 0
    assert pool.draws.max() < 1
    assert chosen("hierarchical", pool, 5) == chosen("random", pool, 5)
    near = chosen("hierarchical", pool, 5, hierarchy={"leaf": "closest"})
    assert near == chosen("near", pool, 5)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("count", [0, 1, 9, 10])
def test_small_blocks_and_every_count(method, count):
    pool = pool_of(rows=30, clusters=3, pins=() if count == 0 else (4,))
    rows = np.array([1, 2, 4, 5, 8, 13, 21, 22, 28, 29])
    found = chosen(method, pool, count, rows)
    assert len(set(found)) == count
    if count:
        assert found[0] == 2  # the pinned row 4
        one = chosen(method, pool, 1, np.array([4]))
        assert one == [0]
    assert chosen(method, pool, count, rows) == found


def test_similarities_are_exact_whichever_way_they_are_computed(monkeypatch):
    pool = pool_of()
    z = unit(pool)
    formed = Similarity(pool.features.array)
    monkeypatch.setattr("echostill.curation.selection.methods.similarity.GRAM_ROWS", 0)
    single = Similarity(pool.features.array)
    assert GRAM_ROWS > ROWS
    for row in range(ROWS):
        assert np.array_equal(formed.row(row), single.row(row))
        np.testing.assert_allclose(formed.row(row), z @ z[row], atol=1e-12)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("few", [0.0, 0.25, 1.0])
def test_values_rise_to_a_row_as_if_all_of_it_were_computed(few, zero, monkeypatch):
    monkeypatch.setattr("echostill.curation.selection.methods.similarity.FEW", few)
    features = pool_of(rows=300, dimension=48).features.array.copy()
    if zero:
        features[7] = 0  # has no direction: its similarities are no numbers
    with np.errstate(divide="ignore", invalid="ignore"):
        whole, few_wanted = Similarity(features), Similarity(features, 3)
        expected = np.full(300, -np.inf)
        found = expected.copy()
        for row in np.random.default_rng(0).permutation(300):
            expected = np.maximum(expected, whole.row(row))
            few_wanted.raise_to(row, found)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("count", [1, 5, 39, 60])
def test_neighbours(count, monkeypatch):
    monkeypatch.setattr("echostill.curation.selection.methods.similarity.CHUNK", 7)
    pool = pool_of()
    pool.features.array[20:26] = pool.features.array[20]  # ties that do not fit the list
    found, cosine = nearest_neighbours(pool.features.array, count)
    expected, all_cosines = neighbours_by_hand(unit(pool), min(count, ROWS - 1))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(cosine, np.take_along_axis(all_cosines, found, 1), atol=1e-12)


def test_tree_of_clusters():
    generator = np.random.default_rng(0)
    branches = generator.normal(size=(4, 8)) * 6
    leaves = (np.repeat(branches, 25, axis=0) + generator.normal(size=(100, 8))).astype(np.float32)
    leaves /= np.linalg.norm(leaves, axis=1, keepdims=True)
    parents = cluster_tree(leaves, 3, 20, 0)
    assert [len(level) for level in parents] == [100, int(parents[0].max()) + 1]
    assert parents[0].max() + 1 <= 10
    assert parents[1].max() + 1 <= 3
    # No cluster of the second level mixes branches.
    branch = np.repeat(np.arange(4), 25)
    assert all(len(set(branch[parents[0] == node])) == 1 for node in set(parents[0].tolist()))
    assert cluster_tree(leaves, 1, 20, 0) == []
    assert cluster_tree(leaves[:2], 3, 20, 0) == []
