import numpy as np
import pytest

from echostill.curation.selection.ranking import dual_ranks

NEAR, STEEP = np.array([1, 2, 3, 4]), np.array([1, 3, 4, 2])  # the figure's four images
SIZE = np.full(4, 4)


def test_formulas():
    by = {
        name: dual_ranks(NEAR, STEEP, SIZE, 0.25, name, 0.5)
        for name in ("sum", "product", "max", "two-stage")
    }
    np.testing.assert_allclose(by["sum"], (0.25 * NEAR + 0.75 * STEEP) / 4)
    np.testing.assert_allclose(by["product"], NEAR**0.25 * STEEP**0.75 / 4)
    np.testing.assert_allclose(by["max"], [1 / 4, 3 / 4, 1, 1])
    # The first two by gradient are images 0 and 3; nearest first, then the others.
    np.testing.assert_allclose(by["two-stage"], [1 / 8, 6 / 8, 7 / 8, 4 / 8])
    for value in by.values():
        assert value.min() > 0
        assert value.max() <= 1


def test_products_that_are_equal_on_paper_tie():
    near, steep = np.array([1, 2, 3, 4, 6, 12]), np.array([12, 6, 4, 3, 2, 1])
    assert len(set(dual_ranks(near, steep, np.full(6, 12), 0.5, "product").tolist())) == 1


@pytest.mark.parametrize("keep", [0.3, 0.1, 1.0])
def test_two_stages_keep_the_share_rounded_up(keep):
    rank = np.arange(1, 11)
    value = dual_ranks(rank, rank, np.full(10, 10), 0.5, "two-stage", keep)
    assert (value <= 0.5).sum() == round(10 * keep)
