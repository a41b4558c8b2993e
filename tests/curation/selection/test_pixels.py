import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import rankdata
from sklearn.linear_model import LinearRegression

from echostill.curation.selection.pixels import (
    STATISTICS,
    explained_by_pixels,
    explained_in_pool,
    ranks,
)


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
