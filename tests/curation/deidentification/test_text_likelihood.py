from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from echostill.curation.deidentification import text_likelihood
from echostill.curation.deidentification.text_likelihood import TRAITS, text_rows
from echostill.platform.imaging.images import decode_image

QUICKSTART = Path(__file__).parents[3] / "examples/quickstart/pool"
LIKELY = 0.7


def likely(value):
    return [row.box for row in text_rows(value) if row.score > LIKELY]


def touches(box, other):
    return min(box[2], other[2]) > max(box[0], other[0]) and min(box[3], other[3]) > max(
        box[1], other[1]
    )


def samples(step):
    files = sorted(QUICKSTART.glob("*/*.jpg"))[::step]
    for number, file in enumerate(files):
        value = decode_image(file.read_bytes())
        yield number, value if value.ndim == 2 else value.max(axis=2)


@given(arrays(np.uint8, st.tuples(st.integers(1, 80), st.integers(1, 80))))
@settings(max_examples=60, deadline=None)
def test_any_picture_gives_rows_inside_it(value):
    for row in text_rows(value):
        x0, y0, x1, y1 = row.box
        assert 0 <= x0 < x1 <= value.shape[1]
        assert 0 <= y0 < y1 <= value.shape[0]
        assert 0 <= row.score <= 1
        assert len(row.traits) == len(TRAITS)


def test_names_drawn_over_real_images_are_seen(phantom):
    """At 12 to 24 pixels and with a contrast that a person would read; no font of the fit's own."""
    seen = []
    for number, value in samples(25):
        at = (10 + number % 40, value.shape[0] // 2 + number % 60)
        dark = value[at[1] : at[1] + 24, at[0] : at[0] + 100].max(initial=0) < 170
        drawn, box = phantom.write(value, "DOE, JANE", at, 12 + number % 13, 255)
        if dark and box[2] < value.shape[1] and box[3] < value.shape[0]:
            seen.append(any(touches(found, box) for found in likely(drawn)))
    assert len(seen) > 15
    assert np.mean(seen) > 0.9


def test_real_tissue_seldom_alarms():
    alarms = [bool(likely(value)) for _, value in samples(10)]
    assert len(alarms) >= 100
    assert np.mean(alarms) < 0.05


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_large_text_is_seen_at_a_smaller_scale(phantom, scale):
    frame = phantom.speckle((100 * scale, 300 * scale), level=40)
    drawn, box = phantom.write(frame, "DOE, JANE", (20, 20), 20 * scale)
    assert any(touches(found, box) for found in likely(drawn))


def test_dark_text_on_a_bright_band_is_seen(phantom):
    frame = phantom.speckle((120, 240), level=40)
    frame[:30] = 220
    drawn, box = phantom.write(frame, "DOE, JANE", (20, 6), 16, 10)
    assert any(touches(found, box) for found in likely(drawn))


def test_coloured_text_as_bright_as_the_tissue_under_it_is_seen(phantom):
    grey = phantom.speckle((120, 240), level=120)
    ink, box = phantom.write(np.zeros_like(grey), "DOE, JANE", (60, 50), 14, 255)
    colour = np.repeat(grey[..., None], 3, axis=2)
    colour[ink > 128] = (0, 150, 0)
    found = [row.box for row in text_rows(colour) if row.score > LIKELY]
    assert any(touches(one, box) for one in found)


def test_small_text_in_a_small_picture_is_seen(phantom):
    drawn, box = phantom.write(phantom.speckle((60, 90), level=40), "DOE, JANE", (10, 20), 10)
    assert any(touches(found, box) for found in likely(drawn))


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_doubling_keeps_every_pixel(value):
    double = text_likelihood._double(value)
    assert double.shape == (2 * value.shape[0], 2 * value.shape[1])
    assert (double[::2, ::2] == value).all()


def test_neighbours_are_those_that_every_pair_taken_alone_gives():
    """The sweep over sorted pieces against all pairs; groups are what pairs connect."""
    rng = np.random.default_rng(3)
    count = 60
    x0, y0 = rng.integers(0, 200, count), rng.integers(0, 40, count)
    high, wide = rng.integers(6, 14, count), rng.integers(2, 12, count)
    pieces = text_likelihood._Pieces(
        x0, y0, x0 + wide, y0 + high,
        area=np.full(count, 20.0), contrast=rng.uniform(40, 120, count),
        peak=rng.uniform(100, 160, count), spread=np.ones(count),
        stroke=rng.uniform(2, 4, count), steepness=np.ones(count),
    )  # fmt: skip

    def linked(i, j):
        if pieces.x0[i] > pieces.x0[j]:
            i, j = j, i
        low, tall = sorted((high[i], high[j]))
        shared = min(pieces.y1[i], pieces.y1[j]) - max(y0[i], y0[j])
        gap = pieces.x0[j] - pieces.x1[i]
        return (
            shared >= 0.6 * low
            and tall <= 1.8 * low
            and -0.3 * low <= gap <= text_likelihood._GAP * tall + 1
            and min(pieces.contrast[i], pieces.contrast[j])
            >= 0.4 * max(pieces.contrast[i], pieces.contrast[j])
            and max(pieces.stroke[i], pieces.stroke[j])
            <= 1.8 * min(pieces.stroke[i], pieces.stroke[j])
            and abs(pieces.peak[i] - pieces.peak[j]) <= 40
        )

    groups = [{i} for i in range(count)]
    for i, j in combinations(range(count), 2):
        if linked(i, j):
            first = next(g for g in groups if i in g)
            second = next(g for g in groups if j in g)
            if first is not second:
                first |= second
                groups.remove(second)
    expected = {frozenset(g) for g in groups if len(g) >= 3}
    found = {frozenset(g.tolist()) for g in text_likelihood._neighbours(pieces)}
    assert expected
    assert found == expected
