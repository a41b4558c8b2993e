import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import rankdata
from sklearn.linear_model import LinearRegression

from echostill.curation import select_rows
from echostill.curation.selection.pixels import (
    STATISTICS,
    beyond_pixels,
    explained_by_pixels,
    explained_in_pool,
    ranks,
)
from echostill.platform.errors import UsageError


def test_ranks_are_those_of_scipy():
    values = np.random.default_rng(0).integers(0, 9, 60).astype(float)
    assert ranks(values).tolist() == (rankdata(values) - 1).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_the_share_is_that_of_a_regression_on_ranks(seed):
    rng = np.random.default_rng(seed)
    statistics = rng.normal(size=(200, 3))
    quality = statistics @ [1.0, 0.5, 0.0] + rng.normal(size=200)
    x = np.stack([rankdata(column) for column in statistics.T], axis=1)
    y = rankdata(quality)
    plain = LinearRegression().fit(x, y).score(x, y)
    assert explained_by_pixels(quality, statistics) == pytest.approx(
        1 - (1 - plain) * 199 / 196, abs=6e-4
    )


def test_all_nothing_and_what_cannot_be_told():
    rng = np.random.default_rng(1)
    statistics = rng.normal(size=(3000, 6))
    assert explained_by_pixels(np.exp(statistics[:, 2]), statistics) == 1.0
    assert explained_by_pixels(rng.normal(size=3000), statistics) < 0.01
    assert explained_by_pixels(np.ones(3000), statistics) is None
    assert explained_by_pixels(rng.normal(size=7), statistics[:7]) is None
    # A statistic that is constant or occurs twice explains nothing more.
    twice = np.concatenate([statistics, statistics[:, :1], np.ones((3000, 1))], axis=1)
    assert explained_by_pixels(np.exp(statistics[:, 2]), twice) == 1.0


def test_rows_of_the_pool_are_found_by_id():
    rng = np.random.default_rng(2)
    ids = [f"{row:03d}" for row in range(50)]
    columns = {name: rng.random(50) for name in STATISTICS}
    quality = columns["mean"] ** 3
    pool = pa.table({"image_id": ids, **columns})
    mixed = rng.permutation(50)
    assert explained_in_pool(pa.array(ids), quality, pool.take(mixed)) == 1.0
    assert explained_in_pool(pa.array(ids), quality, pool.drop(["mean"])) is None


def test_what_is_beyond_the_pixels_is_the_residual_of_that_regression():
    rng = np.random.default_rng(3)
    statistics = rng.normal(size=(200, 3))
    quality = statistics @ [1.0, 0.5, 0.0] + rng.normal(size=200)
    x = np.stack([rankdata(column) for column in statistics.T], axis=1)
    y = rankdata(quality)
    expected = 1 + (y - LinearRegression().fit(x, y).predict(x)) / 200
    left = beyond_pixels(quality, statistics)
    assert left.dtype == np.float32
    np.testing.assert_allclose(left, expected, atol=1e-7)
    assert explained_by_pixels(left, statistics) < 0.05 < explained_by_pixels(quality, statistics)


def test_a_row_without_statistics_has_the_mean_ones():
    rng = np.random.default_rng(4)
    statistics, quality = rng.normal(size=(100, 2)), rng.normal(size=100)
    statistics[7] = np.nan
    others = np.delete(np.arange(100), 7)
    x = np.zeros((100, 2))
    x[others] = np.stack([rankdata(column[others]) for column in statistics.T], axis=1)
    x[others] -= x[others].mean(axis=0)
    y = rankdata(quality)
    expected = y - LinearRegression().fit(x, y).predict(x)
    np.testing.assert_allclose(beyond_pixels(quality, statistics), 1 + expected / 100, atol=1e-7)


def test_a_selection_ranks_by_what_is_beyond_the_pixels():
    rng = np.random.default_rng(5)
    ids = [f"{row:03d}" for row in range(80)]
    columns = {name: rng.random(80) for name in STATISTICS}
    own = rng.random(80)
    scores = pa.table(
        {
            "image_id": ids,
            "gradient_mean": (5 * columns["mean"] + own).astype(np.float32),
            "gradient_std": np.zeros(80, dtype=np.float32),
        }
    )
    groups = pa.table({"image_id": ids, "group_id": ids, **columns})
    asked = {"budget": 8, "method": "gradient", "blocked": False, "rank_by": "beyond-pixels"}
    features = rng.normal(size=(80, 4)).astype(np.float32)
    made = select_rows(features, scores, groups, **asked)
    statistics = np.stack(list(columns.values()), axis=1)
    left = beyond_pixels(scores["gradient_mean"].to_numpy(), statistics)
    chosen = np.flatnonzero(made["selected"].to_numpy(zero_copy_only=False))
    assert set(chosen) == set(np.argsort(-left)[:8])
    with pytest.raises(UsageError, match="needs the columns contrast, which"):
        select_rows(features, scores, groups.drop(["contrast"]), **asked)
