from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from echostill.curation.deidentification.brightness import brightest
from echostill.curation.deidentification.sector import Motion, find_sector
from echostill.platform.imaging.dicom import open_dicom
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.header import Region
from echostill.platform.imaging.images import decode_image

QUICKSTART = Path(__file__).parents[3] / "examples/quickstart/pool"
FRAMES = st.one_of(
    arrays(np.uint8, st.tuples(st.integers(1, 70), st.integers(1, 70))),
    arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))),
)


def overlap(first, second):
    return (first & second).sum() / (first | second).sum()


@given(FRAMES)
@settings(max_examples=60, deadline=None)
def test_any_frame_gives_a_mask_of_its_shape_and_a_confidence(frame):
    sector = find_sector(frame)
    assert sector.mask.shape == frame.shape[:2]
    assert sector.mask.dtype == bool
    assert 0 <= sector.confidence <= 1
    again = find_sector(frame)
    assert (again.mask == sector.mask).all()
    assert again.confidence == sector.confidence


@given(st.integers(0, 10_000), st.floats(0.35, 0.7), st.integers(170, 260), st.sampled_from([1, 3]))
@settings(max_examples=25, deadline=None)
def test_a_fan_is_found_whatever_its_opening_depth_and_size(
    phantom, seed, half_angle, depth, scale
):
    mask = phantom.fan(
        240 * scale,
        320 * scale,
        (-40 * scale, 160 * scale),
        (60 * scale, depth * scale),
        half_angle,
    )
    sector = find_sector(phantom.picture(mask, seed))
    assert sector.method == "texture"
    assert sector.confidence > 0.5
    # The outline is convex, so the hollow under the probe belongs to it.
    assert overlap(sector.mask, mask) > 0.85
    assert (sector.mask & mask).sum() > 0.97 * mask.sum()


def test_a_rectangle_beside_a_drawn_panel_is_found(phantom):
    frame = np.full((240, 320), 50, dtype=np.uint8)
    inside = (slice(30, 210), slice(60, 260))
    frame[inside] = phantom.speckle((180, 200))
    frame[40:80, 290:310] = np.linspace(255, 0, 40, dtype=np.uint8)[:, None]  # a grey bar
    sector = find_sector(frame)
    mask = np.zeros(frame.shape, dtype=bool)
    mask[inside] = True
    assert sector.confidence > 0.5
    assert overlap(sector.mask, mask) > 0.9


def test_cropped_tissue_is_kept_whole(phantom):
    sector = find_sector(phantom.speckle((200, 260)))
    assert (sector.method, sector.confidence, bool(sector.mask.all())) == ("whole", 1.0, True)


def test_nothing_and_next_to_nothing_are_not_sure(phantom):
    for frame in (np.zeros((200, 200), np.uint8), np.full((200, 200), 90, np.uint8)):
        assert find_sector(frame).confidence == 0
    dot = np.zeros((200, 200), np.uint8)
    dot[90:110, 90:110] = phantom.speckle((20, 20))
    assert find_sector(dot).confidence < 0.5


def test_text_beside_the_fan_is_outside_and_known_text_does_not_widen_it(phantom):
    mask = phantom.fan()
    frame, box = phantom.write(phantom.picture(mask), "DOE, JANE", (4, 4))
    sector = find_sector(frame, lettering=[box])
    assert not sector.mask[box[1] : box[3], box[0] : box[2]].any()
    assert overlap(sector.mask, find_sector(phantom.picture(mask)).mask) > 0.97


def test_a_cine_is_told_from_a_still_panel_by_what_moves(phantom):
    """A textured picture that stands still beside the sector is an overlay; no still can tell."""
    left, right = np.zeros((2, 240, 320), dtype=bool)
    left[20:220, 10:150] = True
    right[20:220, 170:310] = True
    logo = phantom.picture(right, seed=99)
    motion = Motion()
    for seed in range(6):
        motion.add(np.maximum(phantom.picture(left, seed), logo))
    sector = find_sector(motion)
    assert sector.method == "motion"
    assert overlap(sector.mask, left) > 0.9
    assert not (sector.mask & right).any()
    assert overlap(find_sector(np.maximum(phantom.picture(left), logo)).mask, left | right) > 0.8


def test_a_cine_in_which_nothing_moves_is_looked_at_like_a_still(phantom):
    motion = Motion()
    for _ in range(6):
        motion.add(phantom.picture(phantom.fan()))
    sector = find_sector(motion)
    assert sector.method == "texture"
    assert overlap(sector.mask, find_sector(phantom.picture(phantom.fan())).mask) == 1


@given(arrays(np.uint8, (7, 5, 6, 3)))
@settings(max_examples=30)
def test_motion_gathers_what_all_frames_at_once_would_give(frames):
    motion = Motion()
    for frame in frames:
        motion.add(frame)
    value = frames.max(axis=3)
    assert (motion.highest == value.max(axis=0)).all()
    assert (motion.lowest == value.min(axis=0)).all()
    assert (motion.change == value.max(axis=0) - value.min(axis=0)).all()


def test_frames_of_two_sizes_are_no_cine():
    motion = Motion()
    motion.add(np.zeros((4, 5), np.uint8))
    with pytest.raises(ValueError, match="among frames"):
        motion.add(np.zeros((5, 4), np.uint8))


def test_declared_regions_bound_the_sector(phantom):
    frame = phantom.speckle((200, 300))
    sector = find_sector(frame, [Region(50, 20, 199, 179, 1, 1)])
    wanted = np.zeros(frame.shape, dtype=bool)
    wanted[20:180, 50:200] = True
    assert sector.method == "declared"
    assert (sector.mask == wanted).all()
    assert not find_sector(frame, [Region(50, 20, 199, 179, 5, 1)]).method.startswith("declared")


def test_a_fan_is_found_inside_its_declared_rectangle(phantom):
    mask = phantom.fan()
    frame, box = phantom.write(phantom.picture(mask), "FR 50Hz", (22, 24))
    sector = find_sector(frame, [Region(20, 20, 299, 219, 1, 1)], [box])
    assert sector.method == "declared+texture"
    assert not sector.mask[box[1] : box[3], box[0] : box[2]].any()
    assert not sector.mask[:20].any()


def test_a_declared_region_with_text_beside_its_tissue_is_cut_to_the_tissue(phantom):
    """Scanners declare the whole screen and write into it; small tissue is tissue all the same."""
    mask = np.zeros((400, 600), dtype=bool)
    mask[40:120, 200:400] = True
    frame, box = phantom.write(phantom.picture(mask), "Dist 1.06 cm", (60, 200), 18)
    whole = Region(0, 0, 599, 399, 1, 1)
    assert find_sector(frame, [whole]).mask[box[1] : box[3], box[0] : box[2]].all()
    sector = find_sector(frame, [whole], [box])
    assert sector.method == "declared+texture"
    assert overlap(sector.mask, mask) > 0.95
    assert not sector.mask[box[1] : box[3], box[0] : box[2]].any()


def test_graphics_and_signals_are_declared_but_not_kept(phantom):
    frame = phantom.speckle((200, 300))
    regions = [Region(0, 0, 149, 149, 1, 1), Region(150, 150, 299, 199, 4, 10)]
    mask = find_sector(frame, regions).mask
    assert mask[:150, :150].all()
    assert not mask[150:, 150:].any()


def test_regions_that_do_not_fit_the_frame_are_not_believed():
    """Real files do this: somebody shrank the pixels and left the header as it was."""
    clip = open_dicom(SourceFile("", str(QUICKSTART / "dicom/examples_ybr_color.dcm")))
    pixels = next(clip.decode([0])).pixels
    assert clip.header.regions[0].right > pixels.shape[1]
    assert not find_sector(pixels, clip.header.regions).method.startswith("declared")


def test_real_stills_are_found_with_confidence():
    """Every 12th image of the quickstart; a look at the masks said that these are right."""
    confident = []
    for file in sorted(QUICKSTART.glob("*/*.jpg"))[::12]:
        sector = find_sector(decode_image(file.read_bytes()))
        confident.append(sector.confidence >= 0.5)
    assert np.mean(confident) > 0.97


def test_the_brightest_channel_shows_coloured_text():
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[0, 0] = (0, 255, 0)
    assert brightest(colour).tolist() == [[255, 0], [0, 0]]
