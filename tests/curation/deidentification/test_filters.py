import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from echostill.curation.deidentification.filters import grow, shrink

PICTURES = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(PICTURES, st.sampled_from([1, 3, 5, 7, 9, 15]))
def test_running_extremes_are_those_of_scipy(picture, size):
    assert (grow(picture, size) == ndimage.maximum_filter(picture, size, mode="nearest")).all()
    assert (shrink(picture, size) == ndimage.minimum_filter(picture, size, mode="nearest")).all()


@pytest.mark.parametrize("size", [3, 9])
def test_maps_stay_maps(size):
    spots = np.zeros((20, 20), dtype=bool)
    spots[10, 10] = True
    assert grow(spots, size).dtype == bool
    assert grow(spots, size).sum() == size**2
    assert not shrink(spots, size).any()
