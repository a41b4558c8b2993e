"""Coverage against a brute force in fractions, its grid, its cells, and what it does with clips."""

import importlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.selection.core import select_rows
from echostill.curation.selection.features import FeatureRows
from echostill.curation.selection.methods import Block, Pool
from echostill.curation.selection.methods.coverage import STEPS, cosines, greedy_cover, on_grid
from echostill.curation.selection.ranking import dual_ranks, ranks_within_clusters
from echostill.curation.selection.settings import SelectionSettings
from echostill.platform.ray_tasks import TaskPool

module = importlib.import_module("echostill.curation.selection.methods.coverage")


def pool_of(rows=40, clusters=1, seed=0, groups=40, limit=None):
    rng = np.random.default_rng(seed)
    cluster = np.sort(rng.integers(0, clusters, rows)).astype(np.int32)
    quality = rng.gamma(2.0, size=rows).astype(np.float32)
    distance = rng.random(rows).astype(np.float32)
    size, place = np.bincount(cluster)[cluster], np.arange(rows)
    near = ranks_within_clusters(cluster, distance, place)
    steep = ranks_within_clusters(cluster, quality, place, descending=True)
    return Pool(
        ids=pa.array([f"{row:04d}" for row in range(rows)]),
        cluster=cluster,
        size=size,
        distance=distance,
        quality=quality,
        distance_rank=near,
        gradient_rank=steep,
        dual_rank=dual_ranks(near, steep, size, 0.5),
        pinned=np.zeros(rows, bool),
        seed=3,
        group=place % groups,
        flagged=np.zeros(rows, bool),
        group_limit=limit,
        features=FeatureRows(rng.normal(size=(rows, 6)).astype(np.float16), place),
    )


def chosen(pool, count, **keys):
    block = Block(pool, np.arange(len(pool.ids)))
    priority = module.coverage(block, count, SelectionSettings.model_validate(keys))
    return np.argsort(priority, kind="stable")[:count].tolist()


def by_hand(similarity, quality, count, pins=(), group=None, limit=None):
    """Greedy, every gain computed anew in whole numbers."""
    rows = range(len(similarity))
    whole = [[int(value) for value in line] for line in similarity]
    picked, taken = [], []

    def value(row):
        covered = [max((whole[i][p] for p in picked), default=0) for i in rows]
        gain = sum(max(whole[i][row] - covered[i], 0) for i in rows)
        return (gain + 1) * int(quality[row])

    picked += pins
    while len(picked) < count:
        free = [row for row in rows if row not in picked]
        if limit is not None:
            full = {g for g in group if sum(group[p] == g for p in picked) >= limit}
            free = [row for row in free if group[row] not in full]
        if not free:
            break
        best = max(free, key=lambda row: (value(row), -row))
        taken.append(value(best))
        picked.append(best)
    return picked, taken


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 14), st.integers(1, 14), st.sampled_from([None, 1, 2]))
def test_the_greedy_choice_is_the_one_by_hand(seed, rows, count, limit):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 3)).astype(np.float16)
    features[1::3] = features[: len(features[1::3])]  # identical images tie
    similarity = cosines(on_grid(features, features.astype(float).mean(axis=0)))
    quality = rng.integers(1, 6, rows).astype(float)
    group = rng.integers(0, 4, rows)
    pins = [0] if rng.random() < 0.3 else []
    pinned = np.isin(np.arange(rows), pins)
    count = max(min(count, rows), len(pins))
    found = greedy_cover(similarity, quality, count, pinned=pinned, group=group, limit=limit)
    expected, values = by_hand(similarity, quality, count, pins, group, limit)
    order = np.argsort(found, kind="stable")
    assert order[: len(expected)].tolist() == expected
    # The values fall, so that the choices of several cells can be merged by them.
    assert values == sorted(values, reverse=True)
    assert (-found[expected[len(pins) :]]).tolist() == values


def test_the_method_weighs_gradient_rank_and_coverage():
    pool = pool_of(clusters=3)
    mean = pool.features.array.astype(float).mean(axis=0)
    similarity = cosines(on_grid(pool.features.array, mean))
    for alpha in (0.0, 0.3, 1.0):
        good = [
            alpha + (1 - alpha) * float(1 - Fraction(int(rank) - 1, int(size)))
            for rank, size in zip(pool.gradient_rank, pool.size, strict=True)
        ]
        expected, _ = by_hand(similarity, np.maximum(np.rint(np.array(good) * 1024), 1), 12)
        assert chosen(pool, 12, alpha=alpha) == expected


def test_products_on_the_grid_are_exact_in_any_order():
    rng = np.random.default_rng(0)
    for dimension in (2, 64, 768, 1536):
        grid = on_grid(rng.normal(size=(40, dimension)), np.zeros(dimension))
        exact = grid.astype(np.int64) @ grid.T.astype(np.int64)
        mixed = rng.permutation(dimension)
        assert np.abs(exact).max() <= 2**24
        assert np.array_equal((grid[:, mixed] @ grid[:, mixed].T).astype(np.int64), exact)
        unit = grid / np.linalg.norm(grid, axis=1, keepdims=True)
        assert np.abs(cosines(grid) - STEPS * np.maximum(unit @ unit.T, 0)).max() < 0.003 * STEPS


def test_a_row_at_the_mean_covers_itself_alone():
    found = cosines(on_grid(np.array([[1.0, 2.0], [1.0, 4.0]]), np.array([1.0, 2.0])))
    assert found.tolist() == [[STEPS, 0], [0, STEPS]]


@pytest.fixture
def small_cells(monkeypatch):
    monkeypatch.setattr(module, "WHOLE", 30)
    monkeypatch.setattr(module, "CELL", 8)


def test_cells_are_parts_of_clusters_and_their_choices_merge(small_cells):
    pool = pool_of(rows=90, clusters=4, groups=90)
    block = Block(pool, np.arange(90))
    mean = pool.features.mean
    parts = module._parts(block)
    assert all(len(set(pool.cluster[part])) == 1 for part in parts)
    grids = [on_grid(pool.features.array[part], mean) for part in parts]
    cells = [p[c] for p, g in zip(parts, grids, strict=True) for c in module.cells(g, 8)]
    assert sorted(np.concatenate(cells).tolist()) == list(range(90))
    assert max(map(len, cells)) <= 8
    assert all(cell.tolist() == sorted(cell) for cell in cells)
    good = 1 - (pool.gradient_rank - 1) / pool.size
    quality = np.maximum(np.rint((0.5 + 0.5 * good) * 1024), 1)
    merged = []
    for cell in cells:
        similarity = cosines(on_grid(pool.features.array[cell], mean))
        picked, values = by_hand(similarity, quality[cell], len(cell))
        merged += [(-value, int(cell[row])) for row, value in zip(picked, values, strict=True)]
    expected = [row for _, row in sorted(merged)]
    assert chosen(pool, 20) == expected[:20]


def test_threads_change_nothing_in_many_cells(small_cells, monkeypatch):
    pool = pool_of(rows=90, clusters=4, groups=12, limit=3)
    first = chosen(pool, 40)
    for threads in (1, 5):
        monkeypatch.setattr(module, "TaskPool", lambda threads=threads: TaskPool(threads=threads))
        assert chosen(pool, 40) == first


def clips(rows_of_clip=(40, 40, 40, 3, 2, 1), seed=0):
    """Features of clips of nearly equal frames, and their groups."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(rows_of_clip)), rows_of_clip)
    centres = rng.normal(size=(len(rows_of_clip), 8))
    features = centres[group] + 0.01 * rng.normal(size=(len(group), 8))
    ids = [f"{row:04d}" for row in range(len(group))]
    gradient = pa.array(rng.gamma(2.0, size=len(group)), pa.float32())
    scores = pa.table({"image_id": ids, "gradient_mean": gradient, "gradient_std": gradient})
    groups = pa.table({"image_id": ids, "group_id": [f"clip{number}" for number in group]})
    return features.astype(np.float16), scores, groups


def test_neighbouring_frames_count_once():
    features, scores, groups = clips()
    keys = {"clusters": 3, "max_per_group": None}
    table = select_rows(features, scores, groups, 6, **keys)
    picked = table.filter(table["selected"])["group_id"].to_pylist()
    assert sorted(picked) == [f"clip{number}" for number in range(6)]
    published = select_rows(features, scores, groups, 6, method="dual-rank", **keys)
    assert len(set(published.filter(published["selected"])["group_id"].to_pylist())) < 6


def test_the_automatic_limit_is_told_in_the_reason():
    features, scores, groups = clips((30, 30, 4))
    table = select_rows(features, scores, groups, 12, clusters=2)
    picked = table.filter(table["selected"])
    # 4 each are the smallest limit; twice that is the automatic one.
    counts = picked.group_by("group_id").aggregate([("image_id", "count")])
    assert max(counts["image_id_count"].to_pylist()) <= 8
    # A limit of 4 is exact, and the rows it turns away say so.
    limited = select_rows(features, scores, groups, 12, clusters=2, max_per_group=4).to_pylist()
    full = [row for row in limited if not row["selected"]]
    assert all("its group already has 4 images selected" in row["reason"] for row in full)
    assert sum(row["selected"] for row in limited) == 12


def test_a_larger_budget_keeps_the_choices_of_a_smaller_one():
    pool = pool_of(clusters=3)
    assert chosen(pool, 25)[:10] == chosen(pool, 10)


def test_flagged_images_are_last_and_need_no_cover():
    features, scores, groups = clips((40, 5, 5, 5))
    flag = pa.array([row < 40 or row % 5 == 0 for row in range(55)])
    flagged = groups.append_column("blurred", flag)
    table = select_rows(features, scores, flagged, 6, clusters=3)
    picked = table.filter(table["selected"])["image_id"].to_pylist()
    assert not any(flag[int(name)].as_py() for name in picked)
    unpicked = table.filter(pc.equal(table["image_id"], "0000")).to_pylist()[0]
    assert unpicked["reason"].endswith("its quality flags put it last")
    # Where the others do not suffice the flagged follow, and with the key empty they are as others.
    table = select_rows(features, scores, flagged, 20, clusters=3, max_per_group=None)
    chosen_flags = [
        flag[int(n)].as_py() for n in table.filter(table["selected"])["image_id"].to_pylist()
    ]
    assert chosen_flags.count(False) == 12
    without = select_rows(features, scores, groups, 6, clusters=3)
    assert select_rows(features, scores, flagged, 6, clusters=3, flags_last=()).equals(without)


def test_where_all_are_flagged_the_choice_is_as_if_none_were():
    features, scores, groups = clips()
    flag = pa.array([True] * len(features))
    without = select_rows(features, scores, groups, 8, clusters=3)
    table = select_rows(features, scores, groups.append_column("saturated", flag), 8, clusters=3)
    assert table["selected"].equals(without["selected"])


def test_the_flagged_that_are_needed_cover_each_other():
    pool = pool_of(clusters=3)
    flagged = np.arange(40) % 4 != 0
    last = np.flatnonzero(flagged)
    marked = replace(pool, flagged=flagged)
    grid = on_grid(pool.features.array[last], pool.features.mean)
    good = 1 - (pool.gradient_rank[last] - 1) / pool.size[last]
    quality = np.maximum(np.rint((0.5 + 0.5 * good) * 1024), 1)
    expected, _ = by_hand(cosines(grid), quality, 12)
    found = chosen(marked, 22)
    assert set(found[:10]) == set(np.flatnonzero(~flagged).tolist())
    assert found[10:] == last[expected].tolist()
    # The first are the same ones, however many follow.
    assert chosen(marked, 10) == found[:10]
