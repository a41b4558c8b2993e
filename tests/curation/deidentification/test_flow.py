"""Colour flow as scanners paint it, drawn by the tests."""

import numpy as np
import pytest

from echostill.curation.deidentification.flow import colour_of, hide_flow
from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.deidentification.text.finder import find_text

LIKELY = DeidentifySettings().max_text


def likely(frame):
    return [text for text in find_text(frame) if text.score > LIKELY]


def vessels(shape, seed=0):
    """Where branching flow is, (H, W) bool, and how fast, 0..1."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    where, speed = np.zeros(shape, dtype=bool), np.zeros(shape)
    for _ in range(9):
        start, slope = generator.uniform(40, 200), generator.uniform(-0.6, 0.6)
        width = generator.uniform(8, 14)
        distance = np.abs(y - start - slope * (x - 100) - 8 * np.sin(x / 17 + start))
        branch = (distance < width / 2) & (x > 60) & (x < 260)
        where |= branch
        speed = np.maximum(speed, branch * (1 - distance / width))
    return where, speed * np.sin(x / 21) ** 2  # the heart beats while lines are scanned


def painted(grey, where, speed, kind):
    frame = np.repeat(grey[..., None], 3, axis=2)
    level = np.rint(255 * speed).astype(np.uint8)
    shades = {
        "power": np.stack([np.full_like(level, 255), level, 0 * level], axis=2),
        "towards": np.stack([level // 2 + 127, level // 3, 0 * level], axis=2),
        "away": np.stack([0 * level, level // 2, level // 2 + 127], axis=2),
    }
    frame[where] = shades[kind][where]
    return frame


@pytest.mark.parametrize("kind", ["power", "towards", "away"])
def test_flow_is_hidden_and_tissue_stays(phantom, kind):
    grey = phantom.speckle((240, 420), level=60)
    where, speed = vessels(grey.shape)
    frame = painted(grey, where, speed, kind)
    hidden = hide_flow(frame)
    assert colour_of(hidden)[where].mean() < 0.2 * colour_of(frame)[where].mean()
    assert (hidden[~where] == frame[~where]).all()


@pytest.mark.parametrize("kind", ["power", "towards", "away"])
def test_a_name_over_flow_is_seen(phantom, kind):
    grey = phantom.speckle((240, 420), level=60)
    frame = painted(grey, *vessels(grey.shape), kind)
    channels = [phantom.write(frame[..., c], "DOE, JANE", (90, 110), 18, 255) for c in range(3)]
    written = np.stack([pixels for pixels, _ in channels], axis=2)
    x0, y0, x1, y1 = channels[0][1]
    boxes = [text.box for text in likely(written)]
    assert any(a < x1 and x0 < c and b < y1 and y0 < d for a, b, c, d in boxes)


@pytest.mark.parametrize("size", [14, 24, 40, 60])
@pytest.mark.parametrize("colour", [(255, 255, 0), (0, 255, 0), (255, 60, 60)])
def test_what_is_written_in_one_colour_is_no_flow(phantom, size, colour):
    grey = phantom.speckle((240, 420), level=60)
    ink, _ = phantom.write(np.zeros_like(grey), "DOE, JANE", (20, 60), size, 255)
    share = ink[..., None] / 255
    frame = np.rint(grey[..., None] * (1 - share) + np.array(colour) * share).astype(np.uint8)
    assert hide_flow(frame) is frame


def test_a_coloured_plate_with_a_name_is_no_flow(phantom):
    grey = phantom.speckle((240, 420), level=60)
    frame = np.repeat(grey[..., None], 3, axis=2)
    frame[90:130, 40:380] = (30, 60, 140)
    ink, _ = phantom.write(np.zeros_like(grey), "DOE, JANE", (60, 96), 22, 255)
    frame[ink > 128] = (255, 255, 0)
    assert hide_flow(frame) is frame
    assert likely(frame)


def test_grey_frames_are_as_they_were(phantom):
    frame = np.repeat(phantom.speckle((60, 80))[..., None], 3, axis=2)
    assert hide_flow(frame) is frame
