"""Real images with planted junk and planted cines, to see what a selection takes of them.

    python benchmarks/planted_pool.py OUT MANIFEST [MANIFEST ...] [--junk 0.2] [--cines 10]
        [--kinds bars noise page saturated]

OUT/manifest.csv names the images of the given manifests (columns file, group, organ), the junk and
the cines; junk has the label `junk` and its kind in the column `device`. Junk comes in the kinds of
`--kinds`, by default the first four, equally often and each image a group of its own:

- blank: one grey level with the sensor's noise;
- calipers: nothing but measurement crosses and a depth scale on black;
- phantom: a sector of speckle with rows of wires and round cysts, as quality checks scan it;
- blurred: one of the given images, out of focus;
- bars: colour bars;
- noise: a noisy grey in which no pixel tells anything of its neighbours;
- page: writing on one grey;
- saturated: one of the given images, most of it white;
- screen: a scanner's screen without an image: settings, calipers, a grey bar, an arc;
- empty: a sector with nothing but the receiver's noise;
- speckle: a homogeneous phantom, coherent speckle that the depth attenuates, with a few targets;
- motion: one of the given images, moved while it was taken.

A cine is one of the given images moved a little from frame to frame, with fresh speckle: its frames
are one group, as an examination's are.
"""

import argparse
import csv
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter, shift

KINDS = ("blank", "calipers", "phantom", "blurred")
OTHERS = ("bars", "noise", "page", "saturated", "screen", "empty", "speckle", "motion")
SIDE = 256
FRAMES = 15  # of a planted cine


def junk(kind: str, rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Draw one junk image.

    Args:
        kind: One of ``KINDS`` or ``OTHERS``.
        rng: Source of everything random in it.
        image: A real image; only `blurred`, `saturated` and `motion` use it.
    """
    if kind == "blank":
        level = rng.integers(0, 60)
        noise = rng.normal(0, rng.uniform(0, 2), (SIDE, SIDE))
        return Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8))
    if kind == "calipers":
        return _calipers(rng)
    if kind == "phantom":
        return _phantom(rng)
    if kind in DRAWN:
        return DRAWN[kind](rng)
    if kind in SPOILT:
        grey = np.asarray(image.convert("L").resize((SIDE, SIDE)), np.float32)
        return _picture(SPOILT[kind](grey, rng))
    return image.convert("L").filter(ImageFilter.GaussianBlur(rng.uniform(0.02, 0.04) * SIDE))


def _calipers(rng: np.random.Generator) -> Image.Image:
    page = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(page)
    for depth in range(20, SIDE, 20):
        draw.line([(SIDE - 8, depth), (SIDE - 3, depth)], fill=200)
    for _ in range(rng.integers(2, 5)):
        x, y = rng.integers(40, SIDE - 40, 2).tolist()
        draw.line([(x - 4, y), (x + 4, y)], fill=230)
        draw.line([(x, y - 4), (x, y + 4)], fill=230)
    draw.text((6, SIDE - 16), f"D {rng.uniform(1, 9):.2f} cm", fill=220)
    return page


def _phantom(rng: np.random.Generator) -> Image.Image:
    y, x = np.mgrid[:SIDE, :SIDE]
    level = np.full((SIDE, SIDE), rng.uniform(60, 110))
    for _ in range(rng.integers(2, 6)):
        at, radius = rng.uniform(50, SIDE - 50, 2), rng.uniform(8, 22)
        level[np.hypot(y - at[0], x - at[1]) < radius] *= rng.choice([0.1, 0.5, 1.8])
    speckle = rng.rayleigh(0.8, (SIDE, SIDE))
    image = Image.fromarray(np.clip(level * speckle, 0, 255).astype(np.uint8))
    picture = np.asarray(image.filter(ImageFilter.GaussianBlur(1.0))).copy()
    column, step = int(rng.integers(60, SIDE - 60)), int(rng.integers(18, 30))
    for depth in range(40, SIDE - 20, step):
        picture[depth : depth + 2, column : column + 4] = 250
    angle = np.arctan2(x - SIDE / 2, y + 30)
    picture[(np.abs(angle) > 0.6) | (np.hypot(y + 30, x - SIDE / 2) > SIDE + 20)] = 0
    return Image.fromarray(picture)


def _picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _bars(rng: np.random.Generator) -> Image.Image:
    colours = rng.integers(0, 256, (rng.integers(5, 11), 3))
    bar = np.arange(SIDE) * len(colours) // SIDE
    picture = np.repeat(colours[bar][None], SIDE, axis=0)
    return _picture(picture if rng.random() < 0.7 else picture.swapaxes(0, 1))


def _noise(rng: np.random.Generator) -> Image.Image:
    return _picture(rng.normal(rng.uniform(60, 150), rng.uniform(15, 80), (SIDE, SIDE)))


def _page(rng: np.random.Generator) -> Image.Image:
    paper = int(rng.choice([0, 20, 255]))
    page = Image.new("L", (SIDE, SIDE), paper)
    draw = ImageDraw.Draw(page)
    for line in range(rng.integers(6, 20)):
        words = rng.integers(10**2, 10**8, rng.integers(1, 5)).tolist()
        draw.text((rng.integers(4, 30), 6 + 12 * line), " ".join(map(hex, words)), fill=255 - paper)
    return page


def _screen(rng: np.random.Generator) -> Image.Image:
    page = Image.new("RGB", (320, 240))
    draw = ImageDraw.Draw(page)
    for step in range(128):
        draw.line([(306, 30 + step), (314, 30 + step)], fill=(255 - 2 * step,) * 3)
    for _ in range(rng.integers(2, 7)):
        x, y = rng.integers(30, 200, 2).tolist()
        draw.line([(x - 4, y), (x + 4, y)], fill=(255, 255, 0))
        draw.line([(x, y - 4), (x, y + 4)], fill=(255, 255, 0))
    for line, name in enumerate(("Gn", "DR", "MI", "TIS", "Frq", "FR")[: rng.integers(1, 7)]):
        draw.text((6, 6 + 12 * line), f"{name} {rng.uniform(0, 90):.1f}", fill=(220, 220, 220))
    draw.arc([60, -40, 260, 210], 30, 150, fill=(90, 90, 90))
    return page


def _sector(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    top = rng.uniform(-60, 20)
    depth = np.hypot(y - top, x - SIDE / 2)
    inside: np.ndarray = np.abs(np.arctan2(x - SIDE / 2, y - top)) < rng.uniform(0.45, 0.85)
    return inside & (depth < rng.uniform(SIDE - 40, SIDE + 40)) & (depth > rng.uniform(20, 60))


def _empty(rng: np.random.Generator) -> Image.Image:
    noise = rng.normal(rng.uniform(12, 60), rng.uniform(3, 15), (SIDE, SIDE))
    return _picture(noise * _sector(rng))


def _speckle(rng: np.random.Generator) -> Image.Image:
    y, x = np.mgrid[:SIDE, :SIDE]
    echo = np.ones((SIDE, SIDE))
    for _ in range(rng.integers(0, 8)):
        at, radius = rng.uniform(20, SIDE - 20, 2), rng.uniform(5, 14)
        echo[np.hypot(y - at[0], x - at[1]) < radius] = rng.choice([0.05, 0.3, 3])
    width = (rng.uniform(0.8, 1.4), rng.uniform(1.5, 3))
    parts = [gaussian_filter(rng.normal(size=(SIDE, SIDE)) * echo, width) for _ in range(2)]
    envelope = np.hypot(*parts)
    decibels = 20 * np.log10(envelope / envelope.mean() + 1e-3) - y * rng.uniform(0, 0.08)
    picture = (decibels + rng.uniform(25, 35)) / 50 * 255
    return _picture(picture * _sector(rng) if rng.random() < 0.5 else picture)


def _saturated(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return grey * rng.uniform(4, 10) + rng.uniform(40, 150)


def _motion(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    length, angle = rng.uniform(12, 40), rng.uniform(0, np.pi)
    way = np.linspace(-length / 2, length / 2, int(length))
    moved = [shift(grey, (at * np.sin(angle), at * np.cos(angle)), order=1) for at in way]
    return np.mean(moved, axis=0)


DRAWN = {
    "bars": _bars,
    "noise": _noise,
    "page": _page,
    "screen": _screen,
    "empty": _empty,
    "speckle": _speckle,
}
SPOILT = {"saturated": _saturated, "motion": _motion}


def cine(image: Image.Image, frames: int, rng: np.random.Generator) -> list[Image.Image]:
    """Move an image a little from frame to frame: a slow walk, breathing, fresh speckle."""
    grey = image.convert("L").resize((SIDE + 16, SIDE + 16), Image.Resampling.BILINEAR)
    walk = np.cumsum(rng.normal(0, 0.7, (frames, 3)), axis=0)
    made = []
    for dx, dy, turn in np.clip(walk, -7, 7):
        moved = grey.rotate(turn * 0.3, Image.Resampling.BILINEAR)
        box = (8 + dx, 8 + dy, 8 + dx + SIDE, 8 + dy + SIDE)
        still = np.asarray(moved.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box), np.float32)
        speckle = 1 + 0.06 * rng.standard_normal(still.shape)
        made.append(Image.fromarray(np.clip(still * speckle, 0, 255).astype(np.uint8)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out")
    parser.add_argument("manifest", nargs="+")
    parser.add_argument("--junk", type=float, default=0.0, help="Share of the whole that is junk.")
    parser.add_argument("--cines", type=int, default=0, help=f"Cines of {FRAMES} frames.")
    parser.add_argument("--kinds", nargs="+", choices=KINDS + OTHERS, default=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    out = Path(arguments.out)
    out.mkdir(parents=True)
    rows: list[dict[str, str]] = []
    for manifest in arguments.manifest:
        folder = Path(os.path.abspath(manifest)).parent
        with open(manifest, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                organ = row.get("organ") or folder.name
                path = str(folder / row["file"])
                rows.append({"file": path, "group": row["group"], "organ": organ, "label": ""})
    real = [row["file"] for row in rows]

    def add(image: Image.Image, name: str, group: str, label: str, device: str) -> None:
        image.save(out / f"{name}.png")
        rows.append(
            {"file": f"{name}.png", "group": group, "organ": "", "label": label, "device": device}
        )

    def picked() -> Image.Image:
        return Image.open(real[int(rng.integers(len(real)))])

    for number in range(arguments.cines):
        for frame, still in enumerate(cine(picked(), FRAMES, rng)):
            add(still, f"cine_{number:03d}_{frame:03d}", f"cine {number}", "", "cine")
    count = round(len(rows) * arguments.junk / (1 - arguments.junk))
    for number in range(count):
        kind = arguments.kinds[number % len(arguments.kinds)]
        add(junk(kind, rng, picked()), f"junk_{number:05d}", f"junk {number}", "junk", kind)
    with open(out / "manifest.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file", "group", "organ", "label", "device"], restval="")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} images, {count} of them junk: {out / 'manifest.csv'}")


if __name__ == "__main__":
    main()
