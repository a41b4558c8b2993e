"""Screens as scanners draw them: what stands beside the tissue, parted from it, stays outside."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.deidentification.outline import even_ground, find_outline, paint_over

CAPTION = "DOE, JANE  12/05/1961"


def rectangle(height, width, box):
    mask = np.zeros((height, width), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def overlap(first, second):
    return (first & second).sum() / (first | second).sum()


def screen(phantom, mask, ground=0, seed=0):
    return np.where(mask, phantom.speckle(mask.shape, seed), ground).astype(np.uint8)


def write_column(phantom, frame, at, lines, size=14):
    boxes = []
    for number, line in enumerate(lines):
        frame, box = phantom.write(frame, line, (at[0], at[1] + number * int(size * 1.4)), size)
        boxes.append(box)
    return frame, boxes


@given(
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.integers(3, 14),
    st.sampled_from([0, 24, 50]),
    st.sampled_from(["above", "below", "left"]),
)
@settings(max_examples=30, deadline=None)
def test_text_beside_a_rectangle_is_outside(phantom, seed, scale, gap, ground, side):
    box = (90 * scale, 60 * scale, 290 * scale, 200 * scale)
    mask = rectangle(240 * scale, 320 * scale, box)
    frame = screen(phantom, mask, ground, seed)
    size = 12 * scale
    if side == "left":
        _, [probe] = write_column(phantom, np.zeros_like(frame), (0, 0), ["FR 15Hz"], size)
        at = (box[0] - gap - probe[2], box[1] + 10 * scale)
        frame, boxes = write_column(phantom, frame, at, ["FR 15Hz", "RS", "Gn 60", "C 50"], size)
    else:
        _, probe = phantom.write(np.zeros_like(frame), CAPTION, (0, 0), size)
        y = box[1] - gap - probe[3] if side == "above" else box[3] + gap - probe[1] + 1
        frame, one = phantom.write(frame, CAPTION, (box[0] - 20, y), size)
        boxes = [one]
    found = find_outline(frame, None, boxes)
    assert found.text_beside
    assert overlap(found.mask, mask) > 0.97
    for x0, y0, x1, y1 in boxes:
        assert found.mask[y0:y1, x0:x1].mean() < 0.02


@given(st.integers(0, 10_000), st.floats(0.4, 0.7), st.integers(1, 2), st.sampled_from([0, 40]))
@settings(max_examples=20, deadline=None)
def test_columns_in_the_corners_beside_a_fan_are_outside(phantom, seed, opening, scale, ground):
    mask = phantom.fan(
        240 * scale, 320 * scale, (-20 * scale, 160 * scale), (50 * scale, 250 * scale), opening
    )
    frame = screen(phantom, mask, ground, seed)
    left, one = write_column(phantom, frame, (4, 4), ["2D", "58%", "C 50", "P Low"], 12 * scale)
    right, two = write_column(phantom, left, (262 * scale, 4), ["TIS 0.4", "MI 1.2"], 12 * scale)
    boxes = [
        box for box in [*one, *two] if not mask[box[1] - 3 : box[3] + 3, box[0] : box[2]].any()
    ]
    found = find_outline(right, None, boxes)
    assert (found.mask & mask).sum() > 0.97 * mask.sum()
    assert overlap(found.mask, mask) > 0.85
    for x0, y0, x1, y1 in boxes:
        assert found.mask[y0:y1, x0:x1].mean() < 0.02


def test_bars_and_rulers_do_not_widen_a_rectangle(phantom):
    mask = rectangle(300, 400, (80, 40, 320, 260))
    frame = screen(phantom, mask)
    frame[60:220, 326:338] = np.linspace(255, 0, 160, dtype=np.uint8)[:, None]
    frame[40:260:20, 70:77] = 200
    frame[270:272, 80:320:4] = 180
    found = find_outline(frame)
    rows, columns = np.flatnonzero(found.mask.any(axis=1)), np.flatnonzero(found.mask.any(axis=0))
    assert found.mask.sum() == len(rows) * len(columns)
    assert abs(rows[0] - 40) <= 1
    assert abs(rows[-1] - 259) <= 1
    assert abs(columns[0] - 80) <= 1
    assert abs(columns[-1] - 319) <= 1


def test_a_caption_that_nobody_knows_for_text_does_not_widen_a_rectangle(phantom):
    """Where the text finder misses it, the tissue's own shape leaves it out."""
    mask = rectangle(300, 400, (80, 60, 320, 260))
    frame, box = phantom.write(screen(phantom, mask), CAPTION, (60, 36), 14)
    found = find_outline(frame)
    assert overlap(found.mask, mask) > 0.98
    assert not found.mask[box[1] : box[3], box[0] : box[2]].any()


@pytest.mark.parametrize("known", [True, False])
def test_a_trace_that_joins_a_caption_to_tissue_does_not_widen_a_rectangle(phantom, known):
    """Closing makes of letters between the beats an area as wide as tissue is."""
    mask = rectangle(400, 520, (90, 40, 420, 300))
    frame = screen(phantom, mask)
    beats = np.rint(390 - 82 * np.exp(-((np.arange(520) % 40 - 20) ** 2) / 8)).astype(int)
    for x, (y, after) in enumerate(itertools.pairwise(beats)):
        frame[min(y, after) : max(y, after) + 1, x] = 170
    frame, box = phantom.write(frame, CAPTION, (150, 306), 14)
    # The finder's cells are coarse: its box begins in the tissue.
    found = find_outline(frame, None, [(box[0] - 6, 292, box[2] + 6, 324)] if known else [])
    assert overlap(found.mask, mask) > 0.98
    assert not found.mask[box[1] : box[3], box[0] : box[2]].any()


@pytest.mark.parametrize("side", [(slice(140, 260), slice(80, 195)), (slice(90, 200), slice(60))])
def test_a_shadow_or_a_vessel_at_a_side_leaves_a_rectangle_one(phantom, side):
    mask = rectangle(300, 400, (40, 60, 320, 260))
    frame = screen(phantom, mask)
    frame[60:260, 40:320][: side[0].stop - 60][side[0].start - 60 :, side[1]] = 4
    frame, box = phantom.write(frame, CAPTION, (60, 36), 14)
    found = find_outline(frame)
    assert overlap(found.mask, mask) > 0.98
    assert not found.mask[box[1] : box[3], box[0] : box[2]].any()


@given(st.integers(0, 10_000), st.integers(4, 40), st.booleans())
@settings(max_examples=10, deadline=None)
def test_both_of_two_panes_are_kept(phantom, seed, gap, captioned):
    """The second is no caption beside the first."""
    left = rectangle(300, 500, (30, 50, 240 - gap // 2, 270))
    right = rectangle(300, 500, (240 + gap - gap // 2, 50, 470, 270))
    frame, boxes = screen(phantom, left | right, seed=seed), []
    if captioned:
        frame, box = phantom.write(frame, CAPTION, (60, 20), 14)
        boxes = [box]
    found = find_outline(frame, None, boxes)
    assert (found.mask & left).sum() > 0.98 * left.sum()
    assert (found.mask & right).sum() > 0.98 * right.sum()


def test_text_in_the_hollow_under_a_curved_probe_is_cut_off(phantom):
    mask = phantom.fan(radii=(90, 270))
    frame, box = phantom.write(screen(phantom, mask), "JANE", (142, 20), 12)
    assert not mask[box[1] : box[3], box[0] : box[2]].any()
    found = find_outline(frame, None, [box])
    assert not found.mask[box[1] : box[3], box[0] : box[2]].any()
    assert (found.mask & mask).sum() > 0.97 * mask.sum()


def test_a_word_in_a_cyst_stays_in_the_outline(phantom):
    """It is parted from the tissue by black as well, but lies in it: a person looks at it."""
    mask = rectangle(240, 320, (20, 10, 300, 230))
    frame = screen(phantom, mask)
    y, x = np.mgrid[:240, :320]
    frame[(y - 120) ** 2 + (x - 160) ** 2 < 50**2] = 0
    frame, box = phantom.write(frame, "JANE", (138, 112), 16)
    found = find_outline(frame, None, [box])
    assert found.mask[box[1] : box[3], box[0] : box[2]].all()
    assert overlap(found.mask, mask) > 0.97


def test_lines_that_reach_from_tissue_to_the_ground_beside_it_stand_on_no_even_ground(phantom):
    """Half of what is around them is black, but not what is between their letters."""
    frame = screen(phantom, phantom.fan())
    for y in range(90, 220, 26):
        frame, _ = phantom.write(frame, "DOE, JANE SMITH", (85, y), 20)
    assert even_ground(frame, (80, 88, 256, 220)) is None


def test_text_over_tissue_stands_on_no_even_ground(phantom):
    tissue = np.random.default_rng(0).integers(20, 160, (120, 300), dtype=np.uint8)
    frame, box = phantom.write(tissue, CAPTION, (30, 40), 14)
    assert even_ground(frame, box) is None
    found = find_outline(frame, None, [box])
    assert (found.method, found.text_beside) == ("whole", False)


@pytest.mark.parametrize("level", [0, 24, 90])
def test_even_ground_has_the_screens_grey(phantom, level):
    frame, box = phantom.write(np.full((60, 240), level, np.uint8), CAPTION, (20, 20), 16)
    assert even_ground(frame, box) == level
    painted = paint_over(frame, {box: level})
    assert (painted == level).all()


def test_painting_over_leaves_the_tissue_beside_as_it_is(phantom):
    mask = rectangle(120, 240, (20, 50, 220, 110))
    frame = screen(phantom, mask) + mask * np.uint8(40)
    frame, box = phantom.write(frame, "DOE, JANE", (40, 28), 14)
    painted = paint_over(frame, {box: 0})
    assert (painted[mask] == frame[mask]).all()
    assert not painted[:50].any()


def test_nothing_is_lost_of_a_fan_that_fills_the_frame_without_text(phantom):
    mask = phantom.fan(half_angle=0.65)
    found = find_outline(screen(phantom, mask, seed=3))
    assert not found.text_beside
    assert (found.mask & mask).sum() > 0.97 * mask.sum()
