"""Drawn tissue of organs whose bright walls, septa and capsules are easily taken for lettering.

Speckle under a map of echogenicity, no lettering in it. Several of each kind are drawn by chance:
angles, depths, sizes, gain, smoothness, callipers.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

Draw = Callable[[np.random.Generator, ImageDraw.ImageDraw, int, int], None]


def draw_tissue(organ: str, g: np.random.Generator) -> np.ndarray:
    """Draw the tissue of an organ, uint8 (H, W): ``ovary``, ``thyroid`` or ``heart``."""
    height, width = int(g.integers(280, 420)), int(g.integers(320, 520))
    background = {"ovary": 95, "thyroid": 85, "heart": 60}[organ]
    picture = Image.new("L", (width, height), int(background * g.uniform(0.7, 1.3)))
    {"ovary": _ovary, "thyroid": _thyroid, "heart": _heart}[organ](
        g, ImageDraw.Draw(picture), width, height
    )
    echo = ndimage.gaussian_filter(np.asarray(picture, dtype=np.float32), g.uniform(1.5, 4.0))
    echo *= 1 + 0.25 * ndimage.gaussian_filter(g.normal(size=echo.shape), 20) * 20
    along, across = g.uniform(0.8, 1.8), g.uniform(1.2, 4.0)
    parts = g.normal(size=(2, *echo.shape))
    parts = ndimage.gaussian_filter(parts, (0, along, across))
    speckle = np.hypot(*parts)
    value = echo * (speckle / speckle.mean()) ** g.uniform(0.4, 0.8)
    return np.clip(value * g.uniform(0.7, 1.2), 0, 255).astype(np.uint8)


def small_heart(g: np.random.Generator) -> np.ndarray:
    """Draw a frame of 112 x 112 pixels as public sets of echocardiograms have it, uint8 (H, W)."""
    tissue = Image.fromarray(draw_tissue("heart", g)).resize((112, 112), Image.Resampling.BICUBIC)
    y, x = np.mgrid[:112, :112]
    apex, half = g.uniform(-6, 10), g.uniform(0.6, 0.85)
    radius = np.hypot(y - apex, x - 56)
    inside = (np.abs(np.arctan2(x - 56, y - apex)) <= half) & (radius <= g.uniform(95, 112))
    sink = io.BytesIO()
    Image.fromarray(np.where(inside, tissue, 0).astype(np.uint8)).save(
        sink, "JPEG", quality=int(g.integers(60, 95))
    )
    return np.asarray(Image.open(sink))


def _oval(g, pen, x, y, a, b, fill, wall, line):  # type: ignore[no-untyped-def]
    pen.ellipse((x - a, y - b, x + a, y + b), fill=fill, outline=wall, width=line)


def _ovary(g: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """Follicles with bright walls, septa, bright echoes behind, sometimes a large cyst."""
    for _ in range(int(g.integers(3, 14))):
        x, y = int(g.uniform(0.2, 0.8) * width), int(g.uniform(0.15, 0.8) * height)
        a = int(g.uniform(0.02, 0.13) * width)
        b = int(a * g.uniform(0.6, 1.2))
        wall = int(g.integers(150, 256))
        pen.rectangle(
            (x - a // 2, y, x + a // 2, min(y + 4 * b, height)), fill=int(g.integers(100, 170))
        )
        _oval(g, pen, x, y, a, b, int(g.integers(0, 18)), wall, int(g.integers(1, 4)))
        if g.random() < 0.3:  # a septum
            pen.line((x - a, y, x + a, y + int(g.integers(-b, b + 1))), fill=wall, width=1)
    for _ in range(int(g.integers(0, 6))):  # gas and bright points of the bowel
        x, y = int(g.uniform(0, 1) * width), int(g.uniform(0, 1) * height)
        pen.arc((x - 20, y - 6, x + 20, y + 6), 180, 360, fill=255, width=int(g.integers(2, 6)))


def _thyroid(g: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """Layers of skin and muscle, lobes with a bright capsule, trachea, carotid, a nodule."""
    y = 0
    while y < 0.3 * height:
        step = int(g.integers(3, 16))
        pen.rectangle((0, y, width, y + step), fill=int(g.integers(40, 150)))
        pen.line((0, y, width, y + int(g.integers(-8, 9))), fill=int(g.integers(150, 256)), width=2)
        y += step + 1
    for side in (0.3, 0.7):
        a, b = 0.2 * width, g.uniform(0.14, 0.22) * height
        _oval(g, pen, side * width, 0.5 * height, a, b, int(g.integers(100, 150)), 220, 2)
        _oval(g, pen, (2.4 * side - 0.7) * width, 0.62 * height, 26, 24, 5, 190, 2)
    middle = 0.5 * width
    pen.arc((middle - 60, 0.5 * height, middle + 60, 0.9 * height), 190, 350, fill=255, width=5)
    pen.rectangle((middle - 50, 0.62 * height, middle + 50, height), fill=10)
    for _ in range(int(g.integers(0, 4))):
        x, y = int(g.uniform(0.2, 0.8) * width), int(g.uniform(0.4, 0.6) * height)
        _oval(g, pen, x, y, int(g.integers(8, 40)), int(g.integers(6, 30)), 60, 30, 3)
        for _ in range(int(g.integers(0, 9))):  # calcifications
            dx, dy = g.integers(-12, 13, 2)
            pen.ellipse((x + dx, y + dy, x + dx + 2, y + dy + 2), fill=255)


def _heart(g: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """Four dark chambers between bright walls, a septum, leaflets of the valves."""
    middle, line = 0.5 * width + g.normal() * 10, int(g.integers(4, 14))
    for side in (-1, 1):
        for top, tall in ((0.3, 0.2), (0.7, 0.13)):
            x, a = middle + side * 0.14 * width, 0.11 * width
            wall = int(g.integers(120, 230))
            _oval(g, pen, x, top * height, a, tall * height, int(g.integers(0, 25)), wall, line)
        for end in (0.02, 0.22):  # leaflets
            x = middle + side * end * width
            tip = (middle + side * 0.12 * width, (0.5 + g.uniform(-0.05, 0.08)) * height)
            pen.line((x, 0.52 * height, *tip), fill=int(g.integers(190, 256)), width=3)
    pen.line((middle, 0.1 * height, middle + g.normal() * 8, 0.9 * height), fill=215, width=line)
    pen.arc((0.1 * width, 0.7 * height, 0.9 * width, height), 10, 170, fill=240, width=4)
