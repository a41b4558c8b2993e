"""Small pictures for the fit of the text finder: tissue, drawn ground, graphics, lettering.

Each crop is ``SIDE`` x ``SIDE`` grey levels with a label for each cell of ``CELL`` pixels: no
text, text, or not to be judged. Tissue is from real pictures and from noise; what is drawn over it
without being text (rulers, callipers, traces, bars, walls, single characters) is there to be told
apart from text.
"""

import io
from typing import Any

import numpy as np
from lettering import OTHERS, SCRIPTS, blend, font_files, ink_of, random_text
from PIL import Image, ImageDraw
from scipy import ndimage

SIDE, CELL = 128, 4
NO_TEXT, TEXT, UNJUDGED = 0, 1, 2
_SCRIPTS = {**SCRIPTS, **OTHERS}
_WEIGHTS = {
    "Latin": 8.0, "Arabic": 4.0, "Persian": 2.0, "Urdu (Naskh)": 2.0, "Urdu (Nastaliq)": 2.0,
    "Korean": 2.0, "Chinese": 2.0, "Japanese": 2.0,
}  # fmt: skip
_COLOURS = ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 0), (0, 1, 0), (0, 1, 1), (1, 0.6, 0.2))
_FAINT = 30  # contrast below which a text is not judged


class Crops:
    """Makes crops; every number gives its own, whatever was made before.

    Args:
        pictures: Real pictures, uint8 (H, W), and for each a (H, W) bool map of what must not be
            judged: lettering that was in it before.
    """

    def __init__(self, pictures: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self._pictures = pictures
        names = list(_SCRIPTS)
        weights = np.array([_WEIGHTS.get(name, 1.0 if name in SCRIPTS else 0.5) for name in names])
        self._scripts = [_SCRIPTS[name] for name in names]
        self._chances = weights / weights.sum()

    def make(self, number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return crop and labels, uint8 (SIDE, SIDE) and (SIDE / CELL, SIDE / CELL)."""
        g = np.random.default_rng([seed, number])
        ground, unjudged = self._ground(g)
        tint = np.ones(3) if g.random() < 0.7 else g.uniform(0.8, 1.0, 3)
        pixels = np.rint(ground[..., None] * tint).astype(np.uint8)
        coloured = g.random() < 0.1
        if g.random() < (0.6 if coloured else 0.15):
            pixels = _doppler(pixels, g)
        for _ in range(g.integers(1, 4) if g.random() < 0.45 else 0):
            pixels = _graphic(pixels, unjudged, g)
        for _ in range(g.integers(1, 4) if g.random() < 0.2 else 0):
            # Redaction leaves black boxes, which are to be no text in turn.
            high, wide = int(np.exp(g.uniform(2, 3.7))), int(np.exp(g.uniform(2.5, 4.7)))
            y, x = (int(v) for v in g.integers(-10, SIDE, 2))
            pixels[max(y, 0) : max(y + high, 0), max(x, 0) : max(x + wide, 0)] = 0
        labels = np.where(unjudged, UNJUDGED, NO_TEXT).astype(np.uint8)
        for _ in range(g.integers(1, 4) if g.random() < 0.6 else 0):
            pixels = self._lettering(pixels, labels, g, coloured)
        pixels = _saved(pixels, g)
        high = pixels.max(axis=2)
        value = high - pixels.min(axis=2) if coloured else high
        return value, _cells(labels)

    def _ground(self, g: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        kind = g.random()
        if kind < 0.74:
            return self._tissue(g)
        if kind < 0.86:
            return _noise(g), np.zeros((SIDE, SIDE), dtype=bool)
        level = 0 if g.random() < 0.6 else int(g.integers(0, 256))
        flat = np.full((SIDE, SIDE), level, dtype=np.float32)
        if g.random() < 0.5:  # the edge of a sector
            tissue, unjudged = self._tissue(g)
            y, x = np.mgrid[:SIDE, :SIDE]
            a, b, c = [*g.normal(size=2).tolist(), g.uniform(-0.3, 0.3) * SIDE]
            side = a * (x - SIDE / 2) + b * (y - SIDE / 2) > c
            return np.where(side, tissue, flat), unjudged & side
        return flat, np.zeros((SIDE, SIDE), dtype=bool)

    def _tissue(self, g: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        value, unjudged = self._pictures[g.integers(len(self._pictures))]
        height, width = value.shape
        # Large frames are looked at in a half and a quarter of their size, too.
        scale = float(np.exp(g.uniform(np.log(0.3), np.log(2.6))))
        scale = max(scale, 0.8 * SIDE / max(height, width))
        side = max(int(SIDE / scale), 8)
        y = int(g.integers(min(0, height - side), max(height - side, 0) + 1))
        x = int(g.integers(min(0, width - side), max(width - side, 0) + 1))
        out = []
        for layer, method in (
            (value, Image.Resampling.BICUBIC if g.random() < 0.5 else Image.Resampling.BILINEAR),
            (unjudged.astype(np.uint8) * 255, Image.Resampling.NEAREST),
        ):
            part = Image.fromarray(layer).crop((x, y, x + side, y + side))
            out.append(np.asarray(part.resize((SIDE, SIDE), method, reducing_gap=2.0)))
        tissue = out[0].astype(np.float32)
        tissue = 255 * (tissue / 255) ** float(np.exp(g.normal(0, 0.3)))
        if g.random() < 0.3:  # the grain of another machine
            grain = ndimage.gaussian_filter(g.rayleigh(1.0, tissue.shape), g.uniform(0.3, 1.5, 2))
            grain = (grain - grain.mean()) / grain.std()
            tissue = tissue * np.clip(1 + g.uniform(0.1, 0.7) * grain, 0, None)
        tissue = np.clip(tissue * g.uniform(0.5, 1.4) + g.uniform(-5, 15), 0, 255)
        turn = int(g.integers(4)) if g.random() < 0.4 else 0
        flip = g.random() < 0.5
        both = [np.rot90(layer, turn) for layer in (tissue, out[1] > 0)]
        both = [layer[:, ::-1] if flip else layer for layer in both]
        return both[0].copy(), both[1].copy()

    def _lettering(
        self, pixels: np.ndarray, labels: np.ndarray, g: np.random.Generator, coloured: bool
    ) -> np.ndarray:
        script = self._scripts[g.choice(len(self._scripts), p=self._chances)]
        length = int(g.integers(3, 13)) if g.random() < 0.92 else int(g.integers(1, 3))
        text = random_text(script, length, g)
        files = font_files(script.known)
        size = int(np.exp(g.uniform(np.log(8), np.log(36))))
        kind, angle, stacked = g.random(), 0.0, False
        if kind < 0.15:
            angle = float(g.choice([90, 270, 90, 270, 180]))
        elif kind < 0.23:
            angle = float(g.uniform(-20, 20))
        elif kind < 0.27:
            angle = float(g.uniform(-90, 90))
        elif kind < 0.32:
            stacked = True
        coarse = g.random() < 0.15
        ink = ink_of(text, files[g.integers(len(files))], size, angle, stacked, coarse)
        if max(ink.shape[:2]) > 1.6 * SIDE or not text:
            return pixels
        ink, at = _cut(ink, g)
        height, width = ink.shape[:2]
        x, y = at
        value = pixels[y : y + height, x : x + width].max(axis=2)
        inside = value[ink[..., 1] > 127]
        if inside.size < 12:
            return pixels
        level, colour = int(g.integers(110, 256)), _COLOURS[g.integers(len(_COLOURS))]
        if coloured:
            colour = _COLOURS[g.integers(3, len(_COLOURS))]
        dark = np.percentile(inside, 25) > 90 and g.random() < 0.7
        if dark and not coloured:
            level, colour = int(g.integers(0, 40)), (1, 1, 1)
        contrast = abs(level - float(np.percentile(inside, 25 if dark else 75)))
        if coloured:
            contrast = 0.6 * level
        if g.random() < 0.12 and not dark:  # with an outline or a plate, as some scanners write
            around = ndimage.grey_dilation(ink[..., 0], 3) if g.random() < 0.5 else ink[..., 1]
            pixels = blend(pixels, around, at, (0, 0, 0))
        pixels = blend(pixels, ink[..., 0], at, [level * part for part in colour])
        line = np.zeros(labels.shape, dtype=bool)
        line[y : y + height, x : x + width] = ink[..., 1] > 127
        near = ndimage.binary_dilation(line, iterations=max(size // 5, 3))
        labels[near & (labels == NO_TEXT)] = UNJUDGED
        judged = contrast >= _FAINT and len(text.replace(" ", "")) >= 3
        labels[line] = TEXT if judged else UNJUDGED
        return pixels


def _cut(ink: np.ndarray, g: np.random.Generator) -> tuple[np.ndarray, tuple[int, int]]:
    """Place ink in the crop at random, and cut off what lies outside."""
    out, at = ink, []
    for axis in (0, 1):
        room = SIDE - ink.shape[axis]
        low, high = (0, room) if room >= 0 else (room, 0)
        if g.random() < 0.15:  # cut by the crop's edge
            low, high = low - ink.shape[axis] // 3, high + ink.shape[axis] // 3
        place = int(g.integers(low, high + 1))
        first, last = max(-place, 0), min(SIDE - place, ink.shape[axis])
        out = out[first:last] if axis == 0 else out[:, first:last]
        at.append(max(place, 0))
    return out, (at[1], at[0])


def _cells(labels: np.ndarray) -> np.ndarray:
    blocks = labels.reshape(SIDE // CELL, CELL, SIDE // CELL, CELL).swapaxes(1, 2)
    text = (blocks == TEXT).mean(axis=(2, 3))
    plain = (blocks == NO_TEXT).mean(axis=(2, 3))
    return np.where(text >= 0.5, TEXT, np.where(plain == 1, NO_TEXT, UNJUDGED)).astype(np.uint8)


def _noise(g: np.random.Generator) -> np.ndarray:
    """Speckle with blobs, walls and shadows in it."""
    shape = (SIDE, SIDE)
    blur = g.uniform(0.4, 2.5), g.uniform(0.6, 6.0)
    speckle = ndimage.gaussian_filter(
        g.rayleigh(1.0, shape), blur if g.random() < 0.8 else blur[::-1]
    )
    spread = g.uniform(0.3, 1.2)
    speckle = np.clip(1 + spread * (speckle - speckle.mean()) / speckle.std(), 0, None)
    slow = ndimage.gaussian_filter(g.normal(size=shape), g.uniform(6, 30))
    level = np.exp(g.uniform(0.2, 1.5) * slow / max(slow.std(), 1e-6))
    value = g.uniform(10, 110) * speckle * level
    for _ in range(g.integers(0, 6)):
        wall = np.asarray(_curve(g, int(g.integers(2, 9))), dtype=np.float32) / 255
        wall = ndimage.gaussian_filter(wall, g.uniform(0.3, 2.0))
        value += wall * g.uniform(60, 255) * (0.3 + 0.7 * speckle / max(speckle.max(), 1e-6) * 2)
    return np.clip(value, 0, 255).astype(np.float32)


def _curve(g: np.random.Generator, width: int) -> Image.Image:
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


def _doppler(pixels: np.ndarray, g: np.random.Generator) -> np.ndarray:
    """Lay patches of flow colours over a crop."""
    field = ndimage.gaussian_filter(g.normal(size=(SIDE, SIDE)), g.uniform(1.5, 9))
    if g.random() < 0.4:  # vessels: where the field changes its sign
        field = -np.abs(field)
    flow = field > np.quantile(field, g.uniform(0.6, 0.95))
    strength = field - field.min() if g.random() < 0.5 else np.abs(field)
    strength = np.clip(strength / strength.max() * g.uniform(1, 2), 0.2, 1)[..., None]
    warm = ((255, 160, 0), (0, 120, 255), (255, 40, 0), (255, 230, 80))[g.integers(4)]
    return np.where(flow[..., None], np.rint(strength * warm), pixels).astype(np.uint8)


def _graphic(pixels: np.ndarray, unjudged: np.ndarray, g: np.random.Generator) -> np.ndarray:
    """Draw one thing over the crop that is no text."""
    picture = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(picture)
    x, y = (int(v) for v in g.integers(0, SIDE, 2))
    thick = int(g.integers(1, 4))
    kinds: list[Any] = [
        _ruler, _dotted, _cross, _box, _trace, _bar, _arrow, _mark, _wall, _arc, _arc, _polygon,
        _comb, _body, _body,
    ]  # fmt: skip
    kind = kinds[g.integers(len(kinds))]
    picture = kind(picture, pen, x, y, thick, g) or picture
    ink = np.asarray(picture)
    colour = np.array(_COLOURS[g.integers(len(_COLOURS))]) * int(g.integers(90, 256))
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
    curve = np.asarray(_curve(g, int(g.integers(2, 12))), dtype=np.float32)
    rough = ndimage.gaussian_filter(g.rayleigh(1.0, curve.shape), (0.8, 1.6))
    rough = np.clip(rough / rough.mean(), 0, 1.3) / 1.3
    curve = ndimage.gaussian_filter(curve, g.uniform(0.4, 2.0)) * rough
    return Image.fromarray(curve.astype(np.uint8))


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


def _saved(pixels: np.ndarray, g: np.random.Generator) -> np.ndarray:
    """Blur, shrink and stretch, compress: what happens to frames on their way."""
    picture = Image.fromarray(pixels)
    if g.random() < 0.2:
        side = int(SIDE * g.uniform(0.6, 0.95))
        methods = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
        picture = picture.resize((side, side), methods[g.integers(2)])
        picture = picture.resize((SIDE, SIDE), methods[g.integers(2)])
    if g.random() < 0.7:
        sink = io.BytesIO()
        picture.save(sink, "JPEG", quality=int(g.integers(50, 97)))
        picture = Image.open(sink)
    return np.asarray(picture.convert("RGB"))
