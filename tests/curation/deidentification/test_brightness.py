"""Brightness against plain numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from echostill.curation.deidentification.brightness import Brightness
from echostill.platform.imaging.images import luminance

SIDES = st.integers(1, 20)
PICTURES = st.one_of(
    arrays.arrays(np.uint8, st.tuples(SIDES, SIDES)),
    arrays.arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(3))),
)


@settings(max_examples=60, deadline=None)
@given(PICTURES)
def test_moments_and_histogram_are_those_of_the_luminance(pixels):
    brightness = Brightness(pixels)
    exact = luminance(pixels).astype(np.float64) * 255
    np.testing.assert_allclose(brightness.levels, exact, atol=1e-4)
    np.testing.assert_array_equal(
        brightness.histogram, np.bincount(brightness.levels.ravel(), minlength=256)
    )
    assert brightness.mean == pytest.approx(exact.mean(), abs=1e-4)
    assert brightness.contrast == pytest.approx(exact.std(), abs=1e-4)


def test_a_flat_picture_has_no_contrast_at_all():
    for level in (0, 1, 7, 255):
        assert Brightness(np.full((37, 41), level, dtype=np.uint8)).contrast == 0.0


def test_a_part_is_looked_at_by_itself():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    whole = Brightness(pixels)
    assert whole.inside((0, 0, 30, 20)) is whole
    part = whole.inside((5, 2, 25, 20))
    np.testing.assert_array_equal(part.levels, pixels[2:20, 5:25])
    assert part.histogram.sum() == 18 * 20
