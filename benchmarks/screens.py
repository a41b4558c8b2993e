"""Screens as scanners draw them: tissue in a rectangle or a fan, with writing and graphics beside.

What is drawn lies outside of the tissue, parted from it by at least ``gap`` pixels of the ground:
none of it belongs to the sector, and no such frame needs to be held back.
"""

import io
from dataclasses import dataclass

import numpy as np
from lettering import SCRIPTS, Script, blend, font_files, ink_of, random_text
from PIL import Image, ImageDraw

_WORDS = (
    "ADULT ECHO", "Thyroid", "GEN", "FR 24Hz", "RS", "2D", "58%", "C 50", "P Low", "HPen",
    "TIS 0.4",
    "MI 1.2", "12:44:03", "04/11/2019", "DR 72", "L12-4", "5.0 cm", "Gn 60", "LONG RT", "PAN PWR",
    "LEFT OVARY", "Dist 2.31 cm", "Vol 12.6 ml", "Ut", "ID 00481", "SMITH^ANNA", "Z 1.0", "D 4.9",
)  # fmt: skip


@dataclass(frozen=True)
class Screen:
    """A drawn screen.

    Attributes:
        pixels: uint8 (H, W, 3).
        tissue: (H, W) bool, where the tissue lies.
        texts: Boxes of what was written (left, top, right, bottom).
    """

    pixels: np.ndarray
    tissue: np.ndarray
    texts: list[tuple[int, int, int, int]]


def draw_screen(
    tissue: np.ndarray, kind: str, g: np.random.Generator, script: Script | None = None
) -> Screen:
    """Draw a screen around tissue.

    Args:
        tissue: uint8 (h, w), what to show: resized to fill the rectangle, or cut to a fan.
        kind: ``rectangle`` or ``fan``.
        g: Where things lie, and what they are.
        script: What the captions are written in; default Latin.
    """
    width, height = int(g.integers(440, 820)), int(g.integers(340, 620))
    ground = 0 if g.random() < 0.75 else int(g.integers(1, 60))
    left, right = int(width * g.uniform(0.12, 0.3)), int(width * g.uniform(0.68, 0.9))
    top, bottom = int(height * g.uniform(0.06, 0.2)), int(height * g.uniform(0.75, 0.93))
    shown = Image.fromarray(tissue).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    mask = np.zeros((height, width), dtype=bool)
    if kind == "rectangle":
        mask[top:bottom, left:right] = True
    else:
        y, x = np.mgrid[:height, :width]
        half = g.uniform(0.45, 0.75)
        inner = g.uniform(0.0, 0.35) * (bottom - top)
        outer = (bottom - top) + inner * np.cos(half)
        apex = top - inner * np.cos(half)
        radius = np.hypot(y - apex, x - (left + right) / 2)
        angle = np.abs(np.arctan2(x - (left + right) / 2, y - apex))
        mask = (radius >= inner) & (radius <= outer) & (angle <= half)
        mask &= (y < bottom) & (x >= left) & (x < right)
    pixels = np.full((height, width, 3), ground, dtype=np.uint8)
    full = np.zeros((height, width), dtype=np.uint8)
    full[top:bottom, left:right] = np.asarray(shown)
    pixels[mask] = full[mask][:, None]
    free = _Free(mask, int(g.integers(3, 14)))
    texts: list[tuple[int, int, int, int]] = []
    names = SCRIPTS["Latin"] if script is None else script
    for maker in (_column, _captions, _ruler, _bar, _mark, _trace):
        if g.random() < 0.7:
            pixels = maker(pixels, free, texts, names, g)
    picture = Image.fromarray(pixels)
    if g.random() < 0.6:
        sink = io.BytesIO()
        picture.save(sink, "JPEG", quality=int(g.integers(70, 96)))
        picture = Image.open(sink)
    if g.random() < 0.4:
        factor = 320 / max(width, height)
        size = int(width * factor), int(height * factor)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        shape = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
        mask = np.asarray(shape)
        texts = [tuple(int(edge * factor) for edge in box) for box in texts]  # type: ignore[misc]
    return Screen(np.asarray(picture.convert("RGB")), mask, texts)


class _Free:
    """Where there is room beside the tissue and what has been drawn."""

    def __init__(self, mask: np.ndarray, gap: int) -> None:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        self.box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        self.gap = gap
        self._taken = mask.copy()

    def fits(self, x: int, y: int, wide: int, high: int) -> bool:
        height, width = self._taken.shape
        if x < 0 or y < 0 or x + wide > width or y + high > height:
            return False
        gap = self.gap
        around = self._taken[max(y - gap, 0) : y + high + gap, max(x - gap, 0) : x + wide + gap]
        return not around.any()

    def take(self, x: int, y: int, wide: int, high: int) -> None:
        # What is drawn may lie as near to other drawings as a line to the next.
        self._taken[y + 2 : y + high - 2, x + 2 : x + wide - 2] = True


def _write(pixels, free, texts, x, y, text, size, names, g):  # type: ignore[no-untyped-def]
    files = font_files(names.known)
    ink = ink_of(text, files[g.integers(len(files))], size)[..., 0]
    high, wide = ink.shape
    if not free.fits(x, y, wide, high):
        return pixels
    free.take(x, y, wide, high)
    texts.append((x, y, x + wide, y + high))
    colour = ((255, 255, 255), (220, 220, 220), (255, 255, 0), (90, 200, 255))[g.integers(4)]
    return blend(pixels, ink, (x, y), colour)


def _word(names: Script, g: np.random.Generator) -> str:
    if names is SCRIPTS["Latin"]:
        return str(_WORDS[g.integers(len(_WORDS))])
    return random_text(names, int(g.integers(3, 9)), g)


def _column(pixels, free, texts, names, g):  # type: ignore[no-untyped-def]
    """Settings below each other, beside the tissue."""
    size = int(g.integers(10, 19))
    left, top, right, bottom = free.box
    x = left - free.gap - int(g.integers(40, 110)) if g.random() < 0.6 else right + free.gap + 1
    y = int(g.integers(top, max((top + bottom) // 2, top + 1)))
    for _ in range(int(g.integers(3, 12))):
        pixels = _write(pixels, free, texts, max(x, 2), y, _word(names, g), size, names, g)
        y += int(size * 1.35)
    return pixels


def _captions(pixels, free, texts, names, g):  # type: ignore[no-untyped-def]
    """Lines above and below the tissue."""
    size = int(g.integers(10, 22))
    _, top, right, bottom = free.box
    for y in (top - free.gap - size - 1, bottom + free.gap + 1, 2):
        for _ in range(int(g.integers(0, 3))):
            x = int(g.integers(2, max(right, 3)))
            text = " ".join(_word(names, g) for _ in range(int(g.integers(1, 4))))
            pixels = _write(pixels, free, texts, x, y, text, size, names, g)
    return pixels


def _ruler(pixels, free, texts, names, g):  # type: ignore[no-untyped-def]
    left, top, right, bottom = free.box
    x = right + free.gap if g.random() < 0.7 else left - free.gap - 10
    step = int(g.integers(8, 40))
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    for number, y in enumerate(range(top, bottom, step)):
        if free.fits(x, y, 8, 2):
            pen.line((x, y, x + (7 if number % 5 == 0 else 4), y), fill=(200, 200, 200))
    return np.asarray(picture)


def _bar(pixels, free, texts, names, g):  # type: ignore[no-untyped-def]
    left, top, right, bottom = free.box
    wide, high = int(g.integers(6, 16)), int((bottom - top) * g.uniform(0.2, 0.8))
    x = (
        right + free.gap + int(g.integers(0, 20))
        if g.random() < 0.6
        else left - free.gap - wide - 1
    )
    y = top + int(g.integers(0, bottom - top - high + 1))
    if not free.fits(x, y, wide, high):
        return pixels
    free.take(x, y, wide, high)
    out = pixels.copy()
    out[y : y + high, x : x + wide] = np.linspace(255, 0, high).astype(np.uint8)[:, None, None]
    return out


def _mark(pixels, free, texts, names, g):  # type: ignore[no-untyped-def]
    """A body mark or a maker's sign."""
    side = int(g.integers(14, 46))
    height, width = pixels.shape[:2]
    for _ in range(12):
        x, y = int(g.integers(0, width - side)), int(g.integers(0, height - side))
        if free.fits(x, y, side, side):
            free.take(x, y, side, side)
            picture = Image.fromarray(pixels)
            pen = ImageDraw.Draw(picture)
            pen.ellipse((x, y, x + side - 1, y + side - 1), outline=(180, 180, 180), width=2)
            pen.line(
                (x + 3, y + side // 2, x + side - 4, y + side // 3), fill=(90, 220, 90), width=2
            )
            return np.asarray(picture)
    return pixels


def _trace(pixels, free, texts, names, g):  # type: ignore[no-untyped-def]
    """An electrocardiogram below the tissue."""
    height, width = pixels.shape[:2]
    top = free.box[3] + free.gap + 2
    if height - top < 20:
        return pixels
    t = np.arange(10, width - 10)
    period = int(g.integers(40, 120))
    beat = np.exp(-((t % period - period / 2) ** 2) / 8) * (height - top - 8)
    picture = Image.fromarray(pixels)
    line = [(int(a), float(height - 5 - b)) for a, b in zip(t, beat, strict=True)]
    ImageDraw.Draw(picture).line(line, fill=(60, 220, 60), width=1)
    return np.asarray(picture)
