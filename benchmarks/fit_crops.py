"""Small pictures for the fit of the text finder: tissue, drawn ground, graphics, lettering.

Each crop is ``SIDE`` x ``SIDE`` grey levels with a label for each cell of ``CELL`` pixels: no
text, text, or not to be judged. Tissue is from real pictures, from drawn echoes
(``fit_echoes.py``) and from noise; what is drawn over it without being text (``fit_graphics.py``)
is there to be told apart from text.
"""

import io

import numpy as np
from fit_echoes import draw_echoes
from fit_graphics import COLOURS, SIDE, curve, draw_graphic
from lettering import OTHERS, SCRIPTS, blend, font_files, ink_of, random_text
from PIL import Image
from scipy import ndimage

CELL = 4
NO_TEXT, TEXT, UNJUDGED = 0, 1, 2
_SCRIPTS = {**SCRIPTS, **OTHERS}
_WEIGHTS = {
    "Latin": 8.0, "Arabic": 7.0, "Persian": 3.0, "Urdu (Naskh)": 3.0, "Urdu (Nastaliq)": 3.0,
    "Korean": 2.0, "Chinese": 2.0, "Japanese": 2.0,
}  # fmt: skip
_JOINED = ("Arabic", "Persian", "Urdu (Naskh)", "Urdu (Nastaliq)")  # short words, few strokes
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
        self._names = names
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
            pixels = draw_graphic(pixels, unjudged, g)
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
        if kind < 0.48:
            return self._tissue(g)
        if kind < 0.80:
            return draw_echoes(SIDE, g), np.zeros((SIDE, SIDE), dtype=bool)
        if kind < 0.86:
            return _noise(g), np.zeros((SIDE, SIDE), dtype=bool)
        level = 0 if g.random() < 0.6 else int(g.integers(0, 256))
        flat = np.full((SIDE, SIDE), level, dtype=np.float32)
        if g.random() < 0.5:  # the edge of a sector
            tissue, unjudged = self._tissue(g)
            if g.random() < 0.4:
                tissue, unjudged = draw_echoes(SIDE, g), np.zeros((SIDE, SIDE), dtype=bool)
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
        name = self._names[g.choice(len(self._names), p=self._chances)]
        script, joined = _SCRIPTS[name], name in _JOINED
        length = int(g.integers(3, 13)) if g.random() < 0.92 else int(g.integers(1, 3))
        if joined and g.random() < 0.4:
            length = int(g.integers(3, 6))
        text = random_text(script, length, g)
        files = font_files(script.known)
        size = int(np.exp(g.uniform(np.log(8), np.log(36))))
        kind, angle, stacked = g.random(), 0.0, False
        if kind < 0.15 or (joined and g.random() < 0.12):
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
        level, colour = int(g.integers(110, 256)), COLOURS[g.integers(len(COLOURS))]
        if coloured:
            colour = COLOURS[g.integers(3, len(COLOURS))]
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
        wall = np.asarray(curve(g, int(g.integers(2, 9))), dtype=np.float32) / 255
        wall = ndimage.gaussian_filter(wall, g.uniform(0.3, 2.0))
        value += wall * g.uniform(60, 255) * (0.3 + 0.7 * speckle / max(speckle.max(), 1e-6) * 2)
    return np.clip(value, 0, 255).astype(np.float32)


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
