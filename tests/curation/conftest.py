"""Drawn ultrasound: speckle in a fan, on black, with lettering where a test wants it."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage


def _fan(height=240, width=320, apex=(-40, 160), radii=(60, 260), half_angle=0.6):
    """Return the mask of a fan: True between two arcs around the apex (row, column)."""
    y, x = np.mgrid[:height, :width]
    radius = np.hypot(y - apex[0], x - apex[1])
    angle = np.abs(np.arctan2(x - apex[1], y - apex[0]))
    return (radius >= radii[0]) & (radius <= radii[1]) & (angle <= half_angle)


def _speckle(shape, seed=0, level=70):
    """Return tissue: smoothed noise of Rayleigh's distribution, uint8."""
    noise = np.random.default_rng(seed).rayleigh(1.0, shape)
    smooth = ndimage.gaussian_filter(noise, (1.0, 2.0))
    return np.clip(smooth / smooth.mean() * level, 5, 200).astype(np.uint8)


def _picture(mask, seed=0, level=70):
    """Return tissue inside the mask and black outside."""
    return np.where(mask, _speckle(mask.shape, seed, level), 0).astype(np.uint8)


def _write(pixels, text, at, size=16, level=230):
    """Return the picture with a text at (column, row), and the box of the text's ink."""
    image = Image.fromarray(pixels)
    font = ImageFont.load_default(size)
    pen = ImageDraw.Draw(image)
    pen.text(at, text, fill=level if pixels.ndim == 2 else (level,) * 3, font=font)
    left, top, right, bottom = pen.textbbox(at, text, font=font)
    return np.asarray(image), (int(left), int(top), int(right) + 1, int(bottom) + 1)


@pytest.fixture(scope="session")
def phantom():
    """Makers of drawn frames: fan, speckle, picture and write."""
    return SimpleNamespace(fan=_fan, speckle=_speckle, picture=_picture, write=_write)
