"""Measure de-identification: what leaks of planted text, what is held back, redacted, and the cost.

    python benchmarks/deidentification.py FOLDER... [--images 200] [--finder both] [--json]
    python benchmarks/deidentification.py FOLDER... --scripts [--texts 300]
    python benchmarks/deidentification.py FOLDER... --screens [--organs] [--images 100]

Every folder is one data set. Half of its pictures (by a hash of the name) gave the text finder its
tissue (``fit_text_finder.py``), the other half is for measuring. Text is drawn at random places,
bright or, on bright ground, dark; then the picture is compressed as JPEG. It leaks where the frame
passes as clean with more than a tenth of the text (its ink and a rim) left in the picture. What is
held back is counted on pictures as they are, and once more on those without lettering of their own:
``fit_pictures.txt`` names the ones that have some (of the half for measuring, a person went through
150 of breast_busi). Look at the pictures named before you call others false.

``--scripts`` draws names in each script, in fonts that the fit never saw where Debian has any, and
in several directions. ``--screens`` puts tissue into drawn screens (``screens.py``) and counts how
many of them, with no text in the tissue, are held back; with ``--organs``, drawn tissue of organs
with bright walls (``organs.py``).
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
from lettering import SCRIPTS, Script, blend, font_files, ink_of
from machine import describe_machine
from organs import draw_tissue, small_heart
from PIL import Image, ImageDraw, ImageFont
from screens import draw_screen

from echostill.curation.deidentification.brightness import brightest
from echostill.curation.deidentification.filters import grow
from echostill.curation.deidentification.frames import deidentify
from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.deidentification.verdict import Cleaned
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
SEEN = 60  # grey levels of contrast from which a text counts as drawn to be read
DIRECTIONS = {
    "Latin, slanted by up to 20 degrees": ("Latin", "slanted"),
    "Latin, upright (90 or 270 degrees)": ("Latin", "upright"),
    "Latin, upside down": ("Latin", "upside down"),
    "Latin, letters below each other": ("Latin", "stacked"),
    "Chinese, letters below each other": ("Chinese", "stacked"),
    "Japanese, letters below each other": ("Japanese", "stacked"),
    "Arabic, upright (90 or 270 degrees)": ("Arabic", "upright"),
}
MODES = ("hold", "redact")


def plain_ink(text: str, g: np.random.Generator) -> np.ndarray:
    """Draw a text in one of the fonts that matplotlib and Pillow bring: ink (H, W) uint8."""
    name, size = FONTS[g.integers(len(FONTS))], int(g.choice(SIZES))
    folder = Path(matplotlib.__file__).parent / "mpl-data/fonts/ttf"
    font: Any = ImageFont.truetype(folder / name, size) if name else ImageFont.load_default(size)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    picture = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(picture).text((-left, -top), text, fill=255, font=font)
    return np.asarray(picture)


def script_ink(script: Script, direction: str, g: np.random.Generator) -> np.ndarray:
    """Draw a name in a script: ink (H, W) uint8."""
    files = font_files(script.unseen or script.known)
    size, angle = int(g.choice([size for size in SIZES if size >= 14])), 0.0
    if direction == "slanted":
        angle = float(g.uniform(5, 20) * g.choice([-1, 1]))
    elif direction == "upright":
        angle = float(g.choice([90, 270]))
    elif direction == "upside down":
        angle = 180.0
    name = script.names[g.integers(len(script.names))]
    file = files[g.integers(len(files))]
    return ink_of(name, file, size, angle, direction == "stacked")[..., 0]


def plant(
    pixels: np.ndarray, ink: np.ndarray, g: np.random.Generator
) -> tuple[np.ndarray, tuple[int, int], float] | None:
    """Lay ink over a picture and compress it: the result, where, its contrast; None if too big."""
    colour = np.asarray(Image.fromarray(pixels).convert("RGB"))
    (height, width), (rows, columns) = ink.shape, colour.shape[:2]
    if width >= columns - 4 or height >= rows - 4:
        return None
    x, y = int(g.integers(2, columns - width - 2)), int(g.integers(2, rows - height - 2))
    ground = brightest(colour)[y : y + height, x : x + width]
    level, tint = int(g.integers(140, 256)), COLOURS[g.integers(len(COLOURS))]
    if np.percentile(ground, 25) > 120 and g.random() < 0.7:
        level, tint = int(g.integers(0, 30)), COLOURS[0]
    contrast = abs(level - float(np.percentile(ground, 75 if level >= 140 else 25)))
    drawn = blend(colour, ink, (x, y), [level * part for part in tint])
    sink = io.BytesIO()
    Image.fromarray(drawn).save(sink, "JPEG", quality=int(g.integers(75, 96)))
    return np.asarray(Image.open(sink)), (x, y), contrast


def lettered(folder: Path) -> set[str]:
    """Return the names of a set's pictures that have lettering of their own."""
    lines = Path(__file__).with_name("fit_pictures.txt").read_text().splitlines()
    begin = f"lettered {set_name(folder)}/"
    return {line.removeprefix(begin) for line in lines if line.startswith(begin)}


def set_name(folder: Path) -> str:
    """Return what a data set is called."""
    return folder.parent.name if folder.name == "images" else folder.name


def clean(pixels: np.ndarray, settings: DeidentifySettings) -> Cleaned:
    """De-identify one still."""
    return next(deidentify([pixels], settings))


def left_of(cleaned: Cleaned, ink: np.ndarray, at: tuple[int, int]) -> bool:
    """Return whether text that was drawn passes: the frame is clean, and the text still in it."""
    if not cleaned.verdict.clean or cleaned.pixels is None:
        return False
    (x, y), (height, width) = at, ink.shape
    kept = cleaned.pixels[y : y + height, x : x + width].max(axis=-1) > 0
    # With a rim: dark ink may be black, and is read where the ground around it is left.
    return bool(kept[grow(ink, 3) > 100].mean() > 0.1)


def pictures_of(folder: Path, number: int) -> list[tuple[Path, np.ndarray, np.random.Generator]]:
    """Return pictures of the half for measuring, each with its own randomness."""
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    hashes = [hashlib.sha256(file.name.encode()).digest() for file in files]
    chosen = sorted((h, f) for h, f in zip(hashes, files, strict=True) if h[0] % 2)
    return [
        (file, decode_image(file.read_bytes()), np.random.default_rng(list(digest)))
        for digest, file in chosen[:number]
    ]


def measure_set(folder: Path, number: int, finder: str) -> dict[str, Any]:
    """Count one data set: leaks by kind of text and by mode, frames held back, cost."""
    ways = {mode: DeidentifySettings(text=mode, finder=finder) for mode in MODES}  # type: ignore[arg-type]
    plain: dict[str, list[Cleaned]] = {mode: [] for mode in MODES}
    leaks: dict[tuple[str, str], list[bool]] = {}
    names, seconds = [], 0.0
    for file, pixels, g in pictures_of(folder, number):
        for mode, settings in ways.items():
            begun = time.process_time()
            cleaned = clean(pixels, settings)
            seconds += (time.process_time() - begun) * (mode == "hold")
            plain[mode].append(Cleaned(None, cleaned.verdict))
        names.append(file.name)
        for text in (*g.choice(LONG, 2), g.choice(SHORT)):
            ink = plain_ink(str(text), g)
            planted = plant(pixels, ink, g)
            if planted is None:
                continue
            kind = "faint" if planted[2] < SEEN else "long" if text in LONG else "short"
            for mode, settings in ways.items():
                leaked = left_of(clean(planted[0], settings), ink, planted[1])
                leaks.setdefault((mode, kind), []).append(leaked)
    held = [cleaned.verdict for cleaned in plain["hold"]]
    own = [name in lettered(folder) for name in names]
    redacted = [cleaned.verdict for cleaned in plain["redact"]]
    return {
        "data": set_name(folder),
        "images": len(names),
        "finder": finder,
        "milliseconds": round(1000 * seconds / max(len(names), 1), 1),
        "with_lettering": sum(own),
        "held_back_plain": share([not v.clean for v, o in zip(held, own, strict=True) if not o]),
        "held_back_text": share([verdict.reason == "text" for verdict in held]),
        "held_back_sector": share([verdict.reason == "sector" for verdict in held]),
        "held_back_if_redacted": share([not verdict.clean for verdict in redacted]),
        "redacted_frames": share([verdict.clean and verdict.redacted > 0 for verdict in redacted]),
        "redacted_of_sector": round(float(np.mean([v.redacted for v in redacted if v.clean])), 5),
        **{f"leaks_{kind}_{mode}": share(flags) for (mode, kind), flags in sorted(leaks.items())},
        "held_back": [n for n, verdict in zip(names, held, strict=True) if not verdict.clean],
    }


def measure_scripts(folders: list[Path], texts: int, finder: str) -> dict[str, dict[str, Any]]:
    """Count leaks for each script and direction: letters of 14 pixels and more, well seen."""
    ways = {mode: DeidentifySettings(text=mode, finder=finder) for mode in MODES}  # type: ignore[arg-type]
    pictures = [item for folder in folders for item in pictures_of(folder, 60)]
    found: dict[str, dict[str, Any]] = {}
    rows = {name: (name, "level") for name in SCRIPTS} | DIRECTIONS
    for number, (row, (name, direction)) in enumerate(rows.items()):
        g = np.random.default_rng(number)
        leaks: dict[str, list[bool]] = {mode: [] for mode in MODES}
        lost = []
        for _ in range(50 * texts):
            ink = script_ink(SCRIPTS[name], direction, g)
            planted = plant(pictures[g.integers(len(pictures))][1], ink, g)
            if planted is None or planted[2] < SEEN:
                continue
            for mode, settings in ways.items():
                cleaned = clean(planted[0], settings)
                leaks[mode].append(left_of(cleaned, ink, planted[1]))
                if mode == "redact" and cleaned.verdict.clean and cleaned.verdict.redacted:
                    lost.append(cleaned.verdict.redacted)
            if len(leaks["hold"]) == texts:
                break
        found[row] = {
            "texts": len(leaks["hold"]),
            **{f"leaks_{mode}": share(flags) for mode, flags in leaks.items()},
            "redacted_of_sector": round(float(np.mean(lost)), 3) if lost else None,
        }
        print(f"{row:<40} {found[row]}", flush=True)
    return found


def measure_screens(
    folders: list[Path], number: int, finder: str, organs: bool = False
) -> dict[str, dict[str, Any]]:
    """Count drawn screens that are held back, and how much of their tissue the others keep."""
    settings = DeidentifySettings(finder=finder)  # type: ignore[arg-type]
    pictures = [
        item
        for folder in folders
        for item in pictures_of(folder, 60)
        if item[0].name not in lettered(folder)
    ]
    kinds = [("rectangle", ""), ("fan", "")]
    if organs:
        kinds = [("fan", "ovary"), ("rectangle", "thyroid"), ("fan", "heart"), ("small", "heart")]
    found = {}
    for kind, organ in kinds:
        g = np.random.default_rng(7)
        held, kept, texts = [], [], []
        for _ in range(number):
            if kind == "small":
                held.append(not clean(small_heart(g), settings).verdict.clean)
                continue
            tissue = draw_tissue(organ, g) if organ else brightest(pick(pictures, g))
            script = list(SCRIPTS.values())[g.integers(len(SCRIPTS))] if g.random() < 0.3 else None
            screen = draw_screen(tissue, kind, g, script)
            cleaned = clean(screen.pixels, settings)
            held.append(not cleaned.verdict.clean)
            if not cleaned.verdict.clean or cleaned.pixels is None:
                continue
            shown = cleaned.pixels.max(axis=-1) > 0
            lit = (screen.pixels.max(axis=-1) > 12) & screen.tissue
            kept.append(float(shown[lit].mean()))
            texts += [shown[y0:y1, x0:x1].mean() > 0.1 for x0, y0, x1, y1 in screen.texts]
        found[f"{organ} {kind}".strip()] = {
            "screens": number,
            "held_back": share(held),
            "tissue_kept": round(float(np.mean(kept)), 3) if kept else None,
            "texts_left": share(texts),
        }
        print(organ, kind, found[f"{organ} {kind}".strip()], flush=True)
    return found


def pick(
    pictures: list[tuple[Path, np.ndarray, np.random.Generator]], g: np.random.Generator
) -> np.ndarray:
    """Return the pixels of one of the pictures."""
    return pictures[g.integers(len(pictures))][1]


def share(flags: Any) -> float | None:
    """Return the share of true values, None of none at all."""
    return round(float(np.mean(flags)), 4) if len(flags) else None


def percent(value: float | None) -> str:
    """Write a share as docs/privacy.md does."""
    if value is None:
        return "-"
    return f"{100 * value:.1f}%" if 0 < value < 0.1 else f"{100 * value:.0f}%"


SET_COLUMNS = {
    "Set": lambda row: row["data"],
    "Long": lambda row: percent(row.get("leaks_long_hold")),
    "Short": lambda row: percent(row.get("leaks_short_hold")),
    "Faint": lambda row: percent(row.get("leaks_faint_hold")),
    "Long, redacted": lambda row: percent(row.get("leaks_long_redact")),
    "Short, redacted": lambda row: percent(row.get("leaks_short_redact")),
    "Held back": lambda row: percent(row["held_back_text"]),
    "Held back without text": lambda row: percent(row["held_back_plain"]),
    "Held back, redacting": lambda row: percent(row["held_back_if_redacted"]),
    "ms": lambda row: f"{row['milliseconds']:.0f}",
}


def print_sets(results: list[dict[str, Any]]) -> None:
    """Print the table of the sets in docs/privacy.md."""
    print("| " + " | ".join(SET_COLUMNS) + " |\n" + "|---" * len(SET_COLUMNS) + "|")
    for row in results:
        print("| " + " | ".join(str(cell(row)) for cell in SET_COLUMNS.values()) + " |")


def print_scripts(results: dict[str, dict[str, Any]]) -> None:
    """Print the table of the scripts in docs/privacy.md."""
    print("| Script | Leaks, held back | Leaks, redacted | Of the sector |\n|---|---|---|---|")
    for name, row in results.items():
        cells = row["leaks_hold"], row["leaks_redact"], row["redacted_of_sector"]
        print(f"| {name} | " + " | ".join(percent(cell) for cell in cells) + " |")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="one folder of pictures per data set")
    parser.add_argument("--images", type=int, default=200, help="pictures of each, or screens")
    parser.add_argument("--texts", type=int, default=300, help="texts for each script")
    parser.add_argument("--finder", choices=("own", "both"), default="own")
    parser.add_argument("--scripts", action="store_true", help="measure scripts and directions")
    parser.add_argument("--screens", action="store_true", help="measure drawn screens")
    parser.add_argument("--organs", action="store_true", help="measure drawn organs in screens")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    given = parser.parse_args()
    print(f"machine: {describe_machine()}; one thread")
    results: Any
    if given.scripts:
        results = measure_scripts(given.folders, given.texts, given.finder)
        print_scripts(results)
    elif given.screens or given.organs:
        results = measure_screens(given.folders, given.images, given.finder, given.organs)
    else:
        results = [measure_set(folder, given.images, given.finder) for folder in given.folders]
        for result in results:
            for name, value in result.items():
                print(f"{name:<24} {' '.join(value) if isinstance(value, list) else value}")
            print()
        print_sets(results)
    if given.json:
        print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()
