"""Graphics for the fit of the text finder that are no lettering.

What scanners and people draw into frames beside text: rulers, callipers, traces, bars, body marks,
and what of tissue is easily taken for it: bright walls, arcs, fibres.
"""

from typing import Any

import numpy as np
from lettering import SCRIPTS, blend, font_files, ink_of
from PIL import Image, ImageDraw
from scipy import ndimage

SIDE = 128  # of a crop, in pixels
COLOURS = ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 0), (0, 1, 0), (0, 1, 1), (1, 0.6, 0.2))


def draw_graphic(pixels: np.ndarray, unjudged: np.ndarray, g: np.random.Generator) -> np.ndarray:
    """Draw one thing over the crop that is no text."""
    picture = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(picture)
    x, y = (int(v) for v in g.integers(0, SIDE, 2))
    thick = int(g.integers(1, 4))
    kinds: list[Any] = [
        _ruler, _dotted, _dashed, _cross, _calliper, _calliper, _calliper, _box, _trace, _bar,
        _arrow, _mark, _wall, _arc, _arc, _polygon,
        _comb, _body, _body,
    ]  # fmt: skip
    kind = kinds[g.integers(len(kinds))]
    picture = kind(picture, pen, x, y, thick, g) or picture
    ink = np.asarray(picture)
    colour = np.array(COLOURS[g.integers(len(COLOURS))]) * int(g.integers(90, 256))
    if kind is _mark:  # one or two characters may be told from text, or not
        near = ndimage.binary_dilation(ink > 0, iterations=4)
        unjudged |= near
    return blend(pixels, ink, (0, 0), colour)


def _ruler(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> None:
    step, long = int(g.integers(3, 24)), int(g.integers(2, 9))
    upright = g.random() < 0.7
    for number, place in enumerate(range(0, SIDE, step)):
        reach = long * (2 if number % 5 == 0 else 1)
        ends = (x, place, x + reach, place) if upright else (place, y, place, y + reach)
        pen.line(ends, fill=255, width=min(thick, 2))
    if g.random() < 0.4:
        pen.line((x, 0, x, SIDE) if upright else (0, y, SIDE, y), fill=255, width=1)


def _dotted(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> None:
    angle, step = g.uniform(0, np.pi), int(g.integers(3, 10))
    for number in range(int(g.integers(5, 40))):
        u, v = x + number * step * np.cos(angle), y + number * step * np.sin(angle)
        pen.ellipse((int(u), int(v), int(u) + thick - 1, int(v) + thick - 1), fill=255)


def _dashed(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> None:
    """A line of dashes, upright or nearly level: a guide, the middle of a sector."""
    angle = (np.pi / 2 if g.random() < 0.7 else 0.0) + g.normal() * 0.08
    dash, gap = g.uniform(2, 9), g.uniform(1, 9)
    along, level = np.array([np.cos(angle), np.sin(angle)]), int(g.integers(60, 256))
    for start in np.arange(-SIDE, SIDE, dash + gap):
        u, v = (np.array([x, y]) + start * along).tolist()
        ends = (u, v, u + dash * float(along[0]), v + dash * float(along[1]))
        pen.line(ends, fill=level, width=min(thick, 2))


def _calliper(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> Image.Image:
    """Crosses with dots between them, and the numbers of what is measured."""
    arm, wide, step = int(g.integers(3, 9)), int(g.integers(1, 4)), g.uniform(2.5, 7)
    dot = int(g.integers(1, 3))
    begin, turn = np.array([x, y], dtype=float), g.uniform(0, np.pi)
    files = font_files(SCRIPTS["Latin"].known)
    for number in range(int(g.integers(1, 4))):
        angle, long = turn + number * np.pi / 2 + g.normal() * 0.2, g.uniform(15, 110)
        along = np.array([np.cos(angle), np.sin(angle)])
        end = begin + long * along
        for u, v in (begin.tolist(), end.tolist()):
            for a, b in ((arm, 0), (0, arm)):
                pen.line((u - a, v - b, u + a, v + b), fill=255, width=wide)
        for place in np.arange(0, long, step):
            u, v = (begin + place * along).tolist()
            pen.rectangle((int(u), int(v), int(u) + dot - 1, int(v) + dot - 1), fill=255)
        if g.random() < 0.6:
            size = int(g.integers(8, 20))
            ink = ink_of(str(g.integers(1, 5)), files[g.integers(len(files))], size)[..., 0]
            u, v = (end + g.uniform(-1.2, 1.2, 2) * (arm + size / 2)).astype(int).tolist()
            picture.paste(255, (u, v), Image.fromarray(ink))
        begin = (begin + end) / 2 + g.normal(size=2) * 8 - along * g.uniform(-10, 30)
    return picture


def _cross(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> None:
    for _ in range(int(g.integers(1, 5))):
        r, turn = int(g.integers(2, 8)), g.random() < 0.4
        for dx, dy in ((1, 1), (1, -1)) if turn else ((1, 0), (0, 1)):
            pen.line(
                (x - r * dx, y - r * dy, x + r * dx, y + r * dy), fill=255, width=min(thick, 2)
            )
        x, y = (int(v) for v in g.integers(0, SIDE, 2))


def _box(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> None:
    u, v = (int(w) for w in g.integers(8, SIDE, 2))
    shape = pen.rectangle if g.random() < 0.5 else pen.ellipse
    shape((x, y, x + u, y + v), outline=255, width=thick)


def _trace(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> None:
    t = np.arange(SIDE)
    period = int(g.integers(20, 80))
    beat = np.exp(-(((t + x) % period - period / 2) ** 2) / g.uniform(2, 40)) * g.uniform(5, 40)
    rows = y - beat + g.normal(0, g.uniform(0, 1), SIDE)
    pen.line(
        [(int(a), float(b)) for a, b in zip(t, rows, strict=True)], fill=255, width=min(thick, 2)
    )


def _bar(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> Image.Image:
    wide, high = int(g.integers(4, 20)), int(g.integers(20, SIDE))
    steps = np.linspace(255, 0, high)
    if g.random() < 0.3:
        steps = np.round(steps / 32) * 32
    bar = np.repeat(steps[:, None], wide, axis=1).astype(np.uint8)
    picture.paste(Image.fromarray(bar if g.random() < 0.8 else bar.T.copy()), (x, y))
    return picture


def _arrow(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> None:
    angle, long, head = g.uniform(0, 2 * np.pi), g.uniform(8, 40), g.uniform(3, 9)
    tip = np.array([x, y])
    back = tip - long * np.array([np.cos(angle), np.sin(angle)])
    if g.random() < 0.7:
        pen.line((*back, *tip), fill=255, width=thick)
    wings = [tip - head * np.array([np.cos(angle + s), np.sin(angle + s)]) for s in (0.5, -0.5)]
    pen.polygon(
        [tuple(tip), *(tuple(w) for w in wings)],
        fill=255 if g.random() < 0.7 else None,
        outline=255,
    )


def _mark(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> Image.Image:
    files = font_files(SCRIPTS["Latin"].known)
    text = str(
        g.choice(["P", "V", "L", "R", "1", "2", "3", "A", "B", "5", "10", "15", "M", "G", "S"])
    )
    ink = ink_of(text, files[g.integers(len(files))], int(g.integers(8, 30)))[..., 0]
    picture.paste(Image.fromarray(ink), (x, y))
    return picture


def _body(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> None:
    """A body mark: both sides of a trunk, a few lines in it, where the probe was held."""
    wide, high = int(g.integers(10, 44)), int(g.integers(10, 52))
    t = np.linspace(-1, 1, 12)
    waist, bow = g.uniform(-0.3, 0.3), g.uniform(0.2, 0.5)
    for side in (-1, 1):
        edge = side * wide * (bow + waist * t**2)
        pen.line(
            [(x + float(e), y + float(v)) for e, v in zip(edge, high / 2 * t, strict=True)],
            fill=255, width=min(thick, 2), joint="curve",
        )  # fmt: skip
    for _ in range(int(g.integers(0, 4))):
        u, v = x + g.uniform(-0.4, 0.4) * wide, y + g.uniform(-0.5, 0.5) * high
        bend, long = int(g.integers(0, 180)), int(g.integers(4, max(wide // 2, 5)))
        pen.arc((u - long, v - long, u + long, v + long), bend, bend + int(g.integers(30, 180)),
                fill=int(g.integers(150, 256)))  # fmt: skip
    u, v = x + g.uniform(-0.4, 0.4) * wide, y + g.uniform(-0.4, 0.4) * high
    a, long = g.uniform(0, np.pi), g.uniform(2, 7)
    pen.line(
        (u - long * np.cos(a), v - long * np.sin(a), u + long * np.cos(a), v + long * np.sin(a)),
        fill=255, width=int(g.integers(1, 4)),
    )  # fmt: skip


def _wall(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> Image.Image:
    wall = np.asarray(curve(g, int(g.integers(2, 12))), dtype=np.float32)
    rough = ndimage.gaussian_filter(g.rayleigh(1.0, wall.shape), (0.8, 1.6))
    rough = np.clip(rough / rough.mean(), 0, 1.3) / 1.3
    wall = ndimage.gaussian_filter(wall, g.uniform(0.4, 2.0)) * rough
    return Image.fromarray(wall.astype(np.uint8))


def _arc(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> Image.Image:
    """A wall of even width: a valve, a skull, a septum between two cysts."""
    for _ in range(int(g.integers(1, 4))):
        wide, high = (int(v) for v in g.integers(12, 150, 2))
        start, long = int(g.integers(0, 360)), int(g.integers(20, 200))
        level = int(g.integers(150, 256))
        box = (x - wide // 2, y - high // 2, x + wide // 2, y + high // 2)
        pen.arc(box, start, start + long, fill=level, width=int(g.integers(2, 8)))
        x, y = (int(v) for v in g.integers(0, SIDE, 2))
    curve = np.asarray(picture, dtype=np.float32)
    rough = ndimage.gaussian_filter(g.rayleigh(1.0, curve.shape), g.uniform(0.4, 2, 2))
    spread = g.uniform(0, 0.5)
    curve = curve * np.clip(1 + spread * (rough - rough.mean()) / rough.std(), 0, 1.2)
    return Image.fromarray(
        np.clip(ndimage.gaussian_filter(curve, g.uniform(0, 1)), 0, 255).astype(np.uint8)
    )


def _polygon(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> None:
    points = np.array([x, y]) + g.normal(0, g.uniform(3, 14), (int(g.integers(3, 9)), 2))
    filled = g.random() < 0.5
    pen.polygon([tuple(p) for p in points], fill=255 if filled else None, outline=255)


def _comb(picture: Image.Image, pen: Any, x: int, y: int, thick: int, g: Any) -> None:
    """Parallel bright fibres, broken: muscle and tendon drawn sharper than they are."""
    angle, step = g.uniform(-0.4, 0.4), int(g.integers(4, 14))
    for row in range(y, min(y + 6 * step, SIDE), step):
        start = x
        while start < SIDE:
            long = int(g.integers(3, 30))
            shift = int((start - x) * np.tan(angle))
            end = row + shift + int(long * np.tan(angle))
            pen.line(
                (start, row + shift, start + long, end), fill=int(g.integers(90, 256)), width=thick
            )
            start += long + int(g.integers(2, 12))


def curve(g: np.random.Generator, width: int) -> Image.Image:
    """Draw a smooth line: a wall, a septum, a trace."""
    points = g.uniform(-0.1, 1.1, (4, 2)) * SIDE
    t = np.linspace(0, 1, 40)[:, None]
    a, b, c, d = points
    path = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
    picture = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(picture).line(
        [tuple(p) for p in path.tolist()], fill=255, width=width, joint="curve"
    )
    return picture
