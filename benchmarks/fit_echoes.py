"""Drawn echoes for the fit of the text finder: speckle over walls, septa, cysts, layers and valves.

Real tissue in the crops (``fit_crops.py``) is of a few organs and scanners. Here the grain is that
of any: scatterers under a map of echogenicity, blurred by a pulse of any size, in any direction,
then compressed to grey levels, sharpened or smoothed as scanners do. ``organs.py``, which is for
measuring, draws its organs in another way.
"""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage


def draw_echoes(side: int, g: np.random.Generator) -> np.ndarray:
    """Draw tissue without lettering: float32 (side, side), 0..255."""
    echo = _echogenicity(side, g)
    noise = g.normal(size=(side, side)) + 1j * g.normal(size=(side, side))
    pulse = _pulse(side, g)
    if g.random() < 0.5:  # walls blurred as far as the grain is wide
        envelope = np.abs(np.fft.ifft2(np.fft.fft2(noise * echo) * pulse))
        envelope /= max(float(envelope.mean() / echo.mean()), 1e-9)
    else:  # walls as sharp as they were drawn
        grain = np.abs(np.fft.ifft2(np.fft.fft2(noise) * pulse))
        envelope = echo * grain / grain.mean()
    if g.random() < 0.4:
        depth = g.uniform(35, 75)  # decibels that are shown
        value = 255 * (20 * np.log10(np.maximum(envelope, 1e-3) / 255) + depth) / depth
        value *= g.uniform(0.5, 1.1)
    else:
        power = g.uniform(0.35, 1.0)
        value = 255 * (envelope / 255) ** power * g.uniform(0.5, 1.3)
        if g.random() < 0.6:
            value = echo * np.divide(envelope, echo) ** power * g.uniform(0.6, 1.3)
    if g.random() < 0.3:
        value += g.uniform(0.3, 1.5) * (value - ndimage.gaussian_filter(value, g.uniform(1, 3)))
    elif g.random() < 0.3:
        value = ndimage.median_filter(value, 3)
    return np.clip(value, 0, 255).astype(np.float32)


def _pulse(side: int, g: np.random.Generator) -> np.ndarray:
    """Return the frequencies that a pulse of Gaussian shape lets through, (side, side)."""
    along = g.uniform(0.4, 2.8)
    across = along * float(np.exp(g.uniform(0, np.log(5))))
    turn = g.uniform(-0.7, 0.7) if g.random() < 0.8 else g.uniform(0, np.pi)
    y, x = np.meshgrid(*[np.fft.fftfreq(side)] * 2, indexing="ij")
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    spread: np.ndarray = np.exp(-2 * np.pi**2 * ((across * u) ** 2 + (along * v) ** 2))
    return spread


def _echogenicity(side: int, g: np.random.Generator) -> np.ndarray:
    """Return a map of how much comes back, float32 (side, side), above 0."""
    picture = Image.new("L", (side, side), int(np.exp(g.uniform(np.log(12), np.log(150)))))
    pen = ImageDraw.Draw(picture)
    shapes = (_layers, _cyst, _cyst, _wall, _wall, _septum, _flap, _points, _shadow)
    for _ in range(int(g.integers(0, 7))):
        shapes[g.integers(len(shapes))](pen, side, g)
    echo = np.asarray(picture, dtype=np.float32)
    echo = ndimage.gaussian_filter(echo, float(np.exp(g.uniform(np.log(0.3), np.log(4)))))
    slow = ndimage.gaussian_filter(g.normal(size=echo.shape), g.uniform(8, 30))
    echo *= np.exp(g.uniform(0, 0.6) * slow / max(float(slow.std()), 1e-6))
    return np.maximum(echo, 1)


def _place(side: int, g: np.random.Generator) -> tuple[float, float]:
    return float(g.uniform(-0.1, 1.1) * side), float(g.uniform(-0.1, 1.1) * side)


def _bright(g: np.random.Generator) -> int:
    return int(g.integers(120, 256))


def _layers(pen: ImageDraw.ImageDraw, side: int, g: np.random.Generator) -> None:
    """Skin, fat, muscle: bands of a few pixels to many, bright lines between them."""
    y, tilt = _place(side, g)[1], g.uniform(-0.2, 0.2) * side
    for _ in range(int(g.integers(2, 9))):
        high = int(g.integers(2, 24))
        pen.polygon([(0, y), (side, y + tilt), (side, y + tilt + high), (0, y + high)],
                    fill=int(g.integers(20, 180)))  # fmt: skip
        if g.random() < 0.7:
            pen.line((0, y, side, y + tilt), fill=_bright(g), width=int(g.integers(1, 4)))
        y += high
        tilt += g.normal() * 3


def _cyst(pen: ImageDraw.ImageDraw, side: int, g: np.random.Generator) -> None:
    """A chamber, a vessel, a follicle: dark, with a wall or without, bright behind."""
    x, y = _place(side, g)
    a = float(np.exp(g.uniform(np.log(3), np.log(0.6 * side))))
    b = a * g.uniform(0.4, 2.2)
    if g.random() < 0.4:
        pen.rectangle((x - a / 2, y, x + a / 2, y + 4 * b), fill=int(g.integers(90, 190)))
    wall = _bright(g) if g.random() < 0.7 else None
    pen.ellipse((x - a, y - b, x + a, y + b), int(g.integers(0, 30)), wall,
                int(np.exp(g.uniform(0, 2.8))))  # fmt: skip


def _wall(pen: ImageDraw.ImageDraw, side: int, g: np.random.Generator) -> None:
    """A bright line that bends, thin or thick."""
    points = np.array([_place(side, g) for _ in range(3)])
    t = np.linspace(0, 1, 24)[:, None]
    path = (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]
    line = [(float(x), float(y)) for x, y in path]
    pen.line(line, fill=_bright(g), width=int(np.exp(g.uniform(0, 2.8))), joint="curve")


def _septum(pen: ImageDraw.ImageDraw, side: int, g: np.random.Generator) -> None:
    """An upright wall between two dark chambers, with walls of their own."""
    x, y = _place(side, g)
    a, b = g.uniform(0.05, 0.4) * side, g.uniform(0.15, 0.8) * side
    gap, line = g.uniform(0, 0.12) * side, int(g.integers(2, 15))
    for way in (-1, 1):
        u = x + way * (a + gap)
        pen.ellipse((u - a, y - b, u + a, y + b), int(g.integers(0, 30)), _bright(g), line)
    pen.line((x, y - b, x + g.normal() * 6, y + b), fill=_bright(g), width=int(g.integers(1, 15)))


def _flap(pen: ImageDraw.ImageDraw, side: int, g: np.random.Generator) -> None:
    """Leaflets of a valve, rings of a trachea: short bright arcs and lines in a row."""
    x, y = _place(side, g)
    for _ in range(int(g.integers(1, 5))):
        a, b = g.uniform(4, 40, 2)
        begin = g.uniform(0, 360)
        pen.arc((x - a, y - b, x + a, y + b), begin, begin + g.uniform(30, 200),
                fill=_bright(g), width=int(g.integers(1, 8)))  # fmt: skip
        x, y = x + g.uniform(-25, 25), y + g.uniform(-25, 25)


def _points(pen: ImageDraw.ImageDraw, side: int, g: np.random.Generator) -> None:
    """Calcifications, gas: bright spots near each other."""
    x, y = _place(side, g)
    for _ in range(int(g.integers(1, 12))):
        u, v = x + g.normal() * 12, y + g.normal() * 12
        a, b = g.uniform(0.5, 5), g.uniform(0.5, 3)
        pen.ellipse((u - a, v - b, u + a, v + b), fill=_bright(g))


def _shadow(pen: ImageDraw.ImageDraw, side: int, g: np.random.Generator) -> None:
    """What lies behind bone or gas: a dark strip with sharp sides."""
    x, y = _place(side, g)
    wide, lean = g.uniform(0.05, 0.6) * side, g.uniform(-0.3, 0.3) * side
    pen.polygon([(x, y), (x + wide, y), (x + wide + lean, side), (x + lean, side)],
                fill=int(g.integers(0, 25)))  # fmt: skip
    if g.random() < 0.6:
        pen.line((x, y, x + wide, y), fill=_bright(g), width=int(g.integers(1, 8)))
