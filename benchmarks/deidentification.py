"""Measure de-identification of stills: what leaks of planted text, and what is held back for it.

    python benchmarks/deidentification.py FOLDER... [--images 200] [--fit] [--json]

Every folder is one data set. Half of its pictures (by a hash of the name) serve for ``--fit``,
which prints new weights for the text check, the other half for measuring. Text is drawn at random
places in the fonts that matplotlib and Pillow bring, 9 to 40 pixels large, bright (140 to 255) or,
on bright ground, dark; then the picture is compressed as JPEG. It leaks where the frame passes as
clean with more than a tenth of the text's box left. What is held back is counted on pictures as
they are: some data sets have lettering of their own, so look at the pictures named before you call
that false.
"""

import argparse
import hashlib
import io
import json
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from machine import describe_machine
from PIL import Image, ImageDraw, ImageFont
from scipy.optimize import minimize

from echostill.curation.deidentification.frames import Cleaned, DeidentifySettings, deidentify
from echostill.curation.deidentification.sector import brightest
from echostill.curation.deidentification.text_likelihood import TRAITS, Box, Row, text_rows
from echostill.platform.imaging.containers import IMAGE_SUFFIXES
from echostill.platform.imaging.images import decode_image

FONTS = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf", "STIXGeneral.ttf", "cmss10.ttf", "",
)  # fmt: skip
LONG = (
    "SMITH, JOHN", "Citizen^Jan", "MRN 00482913", "12/05/1961", "ST. MARY HOSPITAL", "Dr. Weber",
    "Mueller Anna F", "ID: 7781-22", "DOB 03-Feb-1947", "GARCIA LOPEZ", "Acc 20190315", "0099231",
)  # fmt: skip
SHORT = ("RT 5", "LEFT", "MRI", "4711", "LT3", "F 62Y")
SIZES = (9, 10, 11, 12, 13, 14, 16, 18, 20, 22, 26, 32, 40)
COLOURS = ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 0), (0, 1, 0), (0, 1, 1))
THRESHOLDS = (0.5, 0.7, 0.9)


def draw_text(
    pixels: np.ndarray, text: str, generator: np.random.Generator
) -> tuple[np.ndarray, Box, float] | None:
    """Draw text into a picture: the result, the text's box and its contrast; None if too long."""
    picture = Image.fromarray(pixels).convert("RGB")
    pen = ImageDraw.Draw(picture)
    name, size = FONTS[generator.integers(len(FONTS))], int(generator.choice(SIZES))
    folder = Path(matplotlib.__file__).parent / "mpl-data/fonts/ttf"
    font: Any = ImageFont.truetype(folder / name, size) if name else ImageFont.load_default(size)
    left, top, right, bottom = (int(edge) for edge in pen.textbbox((0, 0), text, font=font))
    width, height = right - left, bottom - top
    if width >= picture.width - 4 or height >= picture.height - 4:
        return None
    x = int(generator.integers(2, picture.width - width - 2))
    y = int(generator.integers(2, picture.height - height - 2))
    ground = brightest(np.asarray(picture))[y : y + height, x : x + width]
    level, colour = int(generator.integers(140, 256)), COLOURS[generator.integers(len(COLOURS))]
    if np.percentile(ground, 25) > 120 and generator.random() < 0.7:
        level, colour = int(generator.integers(0, 30)), COLOURS[0]
    contrast = abs(level - float(np.percentile(ground, 75 if level >= 140 else 25)))
    ink = tuple(level * part for part in colour)
    pen.text((x - left, y - top), text, fill=ink, font=font)
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=int(generator.integers(75, 96)))
    return np.asarray(Image.open(sink)), (x, y, x + width, y + height), contrast


def on_text(row: Row, text: Box) -> bool:
    """Return whether most of a row lies on the text, and it covers a good part of it."""
    wide = min(row.box[2], text[2]) - max(row.box[0], text[0])
    high = min(row.box[3], text[3]) - max(row.box[1], text[1])
    shared = max(wide, 0) * max(high, 0)
    own = (row.box[2] - row.box[0]) * (row.box[3] - row.box[1])
    return shared > 0.5 * own and shared > 0.15 * (text[2] - text[0]) * (text[3] - text[1])


def clean(pixels: np.ndarray) -> Cleaned:
    """De-identify one still with the default settings."""
    return next(deidentify([pixels], (), DeidentifySettings()))


def leaked(pixels: np.ndarray, text: Box) -> bool:
    """Return whether text that was drawn passes: the frame is clean, and the text still in it."""
    cleaned = clean(pixels)
    if not cleaned.verdict.clean or cleaned.pixels is None:
        return False
    left, top, right, bottom = text
    kept = (cleaned.pixels[top:bottom, left:right] > 0).any(axis=-1)
    return bool(kept.mean() > 0.1)


def examine(folder: Path, images: int, for_fit: bool) -> list[dict[str, Any]]:
    """Look at one half of a data set's pictures, as they are and with text drawn into them."""
    found = []
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    hashes = [hashlib.sha256(file.name.encode()).digest() for file in files]
    chosen = [(h, f) for h, f in zip(hashes, files, strict=True) if (h[0] % 2 == 0) == for_fit]
    for digest, file in sorted(chosen)[:images]:
        pixels = decode_image(file.read_bytes())
        generator = np.random.default_rng(list(digest))
        rows = text_rows(pixels)
        begun = time.process_time()
        cleaned = clean(pixels)
        seconds = time.process_time() - begun
        drawn = []
        for text in (*generator.choice(LONG, 2), generator.choice(SHORT)):
            made = draw_text(pixels, str(text), generator)
            if made is None:
                continue
            hits = [row for row in text_rows(made[0]) if on_text(row, made[1])]
            leaks = not for_fit and leaked(*made[:2])
            told = {"text": str(text), "contrast": made[2], "hits": hits, "leaks": leaks}
            drawn.append(told)
        item = {"file": file, "rows": rows, "verdict": cleaned.verdict, "drawn": drawn}
        found.append({**item, "seconds": seconds})
    return found


def fit(found: list[dict[str, Any]]) -> tuple[np.ndarray, float]:
    """Fit the logistic model; rows that look like lettering in all but name are left out.

    The pictures' own lettering would teach that lettering is none: what scores above 0.7 without
    having been drawn is dropped before the second and third fit.
    """
    plain = np.array([row.traits for item in found for row in item["rows"]])
    hits = [drawn["hits"] for item in found for drawn in item["drawn"] if drawn["hits"]]
    drawn = np.array([max(rows, key=lambda row: row.traits[0]).traits for rows in hits])
    kept = np.ones(len(plain), dtype=bool)
    for _ in range(3):
        traits = np.concatenate([plain[kept], drawn])
        target = np.r_[np.zeros(kept.sum()), np.ones(len(drawn))]
        mean, spread = traits.mean(axis=0), traits.std(axis=0)
        scaled = np.c_[(traits - mean) / spread, np.ones(len(traits))]

        def loss(b: np.ndarray, x: np.ndarray = scaled, y: np.ndarray = target) -> float:
            return float((np.logaddexp(0, x @ b) - y * (x @ b)).sum() + (b[:-1] ** 2).sum())

        best = minimize(loss, np.zeros(scaled.shape[1]), method="BFGS").x
        weights = best[:-1] / spread
        intercept = float(best[-1] - weights @ mean)
        kept = plain @ weights + intercept < np.log(0.7 / 0.3)
    print(f"fitted on {len(plain)} rows as they are ({(~kept).sum()} left out), {len(drawn)} drawn")
    return weights, intercept


def measure(folder: Path, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Count one data set: leaks and frames held back, and what the text check alone would do."""
    drawn = [d for item in found for d in item["drawn"]]
    seen = np.array([d["contrast"] >= 60 for d in drawn])
    long = np.array([d["text"] in LONG for d in drawn])
    leaks = np.array([d["leaks"] for d in drawn])
    verdicts = [item["verdict"] for item in found]
    out: dict[str, Any] = {
        "data": "/".join(folder.parts[-2:]),
        "images": len(found),
        "milliseconds": round(1000 * float(np.mean([item["seconds"] for item in found])), 1),
        "sector": {
            name: share([verdict.method == name for verdict in verdicts])
            for name in sorted({verdict.method for verdict in verdicts})
        },
        "held_back_text": share([verdict.reason == "text" for verdict in verdicts]),
        "held_back_sector": share([verdict.reason == "sector" for verdict in verdicts]),
        "leaks_long": share(leaks[seen & long]),
        "leaks_short": share(leaks[seen & ~long]),
        "leaks_faint": share(leaks[~seen]),
    }
    best = np.array([max((row.score for row in d["hits"]), default=0.0) for d in drawn])
    alarm = np.array([max((row.score for row in item["rows"]), default=0.0) for item in found])
    for threshold in THRESHOLDS:
        out[f"text check at {threshold}"] = {
            "recall_long": share(best[seen & long] > threshold),
            "recall_short": share(best[seen & ~long] > threshold),
            "recall_faint": share(best[~seen] > threshold),
            "alarms": share(alarm > threshold),
        }
    out["held_back"] = [item["file"].name for item in found if not item["verdict"].clean]
    return out


def share(flags: Any) -> float | None:
    """Return the share of true values, None of none at all."""
    return round(float(np.mean(flags)), 3) if len(flags) else None


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="one folder of pictures per data set")
    parser.add_argument("--images", type=int, default=200, help="pictures of each, at most")
    parser.add_argument("--fit", action="store_true", help="fit new weights and print them")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    given = parser.parse_args()
    if given.fit:
        weights, intercept = fit([i for f in given.folders for i in examine(f, given.images, True)])
        for trait, weight in zip(TRAITS, weights, strict=True):
            print(f"{trait:<14}{weight:.4g}")
        print(f"{'intercept':<14}{intercept:.4g}")
        return
    print(f"machine: {describe_machine()}; one thread")
    results = [measure(folder, examine(folder, given.images, False)) for folder in given.folders]
    for result in results:
        for name, value in result.items():
            print(f"{name:<20} {' '.join(value) if isinstance(value, list) else value}")
        print()
    if given.json:
        print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()
