"""Near-duplicates on real images: how many planted copies are found, and how much else is.

Every image of a folder is planted once more: resized, saved as JPEG, a little brighter or darker.
Both halves go through `echostill ingest`'s reader and the search of `echostill duplicates`, each
file a group of its own. The images' own copies of each other (BUSI has some) are counted beside:
a pair of two originals that is flagged counts as false here, and can be looked at with --sheet.

    python benchmarks/near_duplicates.py FOLDER [--limit N] [--pad] [--sheet S.png] [--json]
"""

import argparse
import hashlib
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from machine import describe_machine
from PIL import Image, ImageDraw, ImageEnhance

from echostill.curation.copies.groups import NEAR
from echostill.curation.copies.stage import CROP_CORRELATION, DuplicatesConfig, find_links
from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.settings import IngestSettings
from echostill.curation.ingestion.sources import read_source
from echostill.platform.tables.schemas import POOL_SCHEMA
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import Table, write_table

SCALES = (0.5, 0.6, 0.75, 0.9, 1.25, 1.5, 2.0)


def planted(file: Path, seed: int, pad: bool, crop: bool = False) -> bytes:
    """Return the changed copy of an image: a function of its content and the seed."""
    rng = np.random.default_rng([seed, *hashlib.sha256(file.read_bytes()).digest()[:8]])
    image = Image.open(file)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    if crop:  # a part with 85 to 95% of each side
        share = 1 - rng.uniform(0.05, 0.15)
        size = np.array(image.size) * share
        left, top = rng.random(2) * (np.array(image.size) - size)
        image = image.crop(tuple(np.rint([left, top, left + size[0], top + size[1]]).astype(int)))
    if pad:  # black borders of up to a fifth on each side
        left, top, right, bottom = (rng.random(4) * 0.2 * np.tile(image.size, 2)).astype(int)
        wider = Image.new(image.mode, (image.width + left + right, image.height + top + bottom))
        wider.paste(image, (int(left), int(top)))
        image = wider
    scale = rng.choice(SCALES)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.BILINEAR)
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.9, 1.1))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.9, 1.1))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=int(rng.integers(60, 96)))
    return sink.getvalue()


def pool_of(files: list[str], folder: Path) -> Table:
    """Read files as ingest does, into a pool whose rows are in the files' order."""
    settings = IngestSettings(deidentify=DeidentifySettings(pixels="off"))
    rows = []
    for file in files:
        for source in list_sources(IngestSettings(source=file)):
            (row,) = read_source(source, settings)
            if not isinstance(row, dict):
                raise SystemExit(f"{file}: {row.message}")
            rows.append({**row, "group_id": str(len(rows)), "image_id": f"{len(rows):032x}"})
    storage = Storage(str(folder / "pool"))
    table = pa.Table.from_pylist(rows, schema=POOL_SCHEMA)
    manifest = write_table(storage, table, stage="ingest", fingerprint={})
    return Table(storage, manifest)


def sheet(pairs: np.ndarray, labels: list[str], files: list[str], target: str) -> None:
    """Draw pairs of images side by side."""
    columns, width, height = 4, 330, 150
    lines = -(-max(len(pairs), 1) // columns)
    page = Image.new("RGB", (columns * width, lines * height), "white")
    draw = ImageDraw.Draw(page)
    for number, (pair, label) in enumerate(zip(pairs, labels, strict=True)):
        x, y = number % columns * width, number // columns * height
        for side, row in enumerate(pair):
            image = Image.open(files[row]).convert("RGB")
            image.thumbnail((160, 130))
            page.paste(image, (x + side * 163, y + 14))
        draw.text((x, y), label, fill="red")
    page.save(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--limit", type=int, help="Images at most.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pad", action="store_true", help="Add black borders to the copies too.")
    parser.add_argument("--crop", action="store_true", help="Crop the copies by 5 to 15%%.")
    parser.add_argument("--crop-correlation", type=float, default=CROP_CORRELATION)
    parser.add_argument("--no-crops", action="store_true", help="Do not search for crops.")
    parser.add_argument("--distance", type=int, default=DuplicatesConfig().near_distance)
    parser.add_argument("--correlation", type=float, default=DuplicatesConfig().near_correlation)
    parser.add_argument("--sheet", help="PNG of the flagged pairs of two originals.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    listed = list_sources(IngestSettings(source=arguments.folder))
    originals = [Path(source.file) for source in listed if "mask" not in source.name.split("/")[0]]
    originals = originals[: arguments.limit]
    count = len(originals)
    config = DuplicatesConfig(
        near_distance=arguments.distance,
        near_correlation=arguments.correlation,
        crop_correlation=None if arguments.no_crops else arguments.crop_correlation,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copies = []
        for number, file in enumerate(originals):
            copies.append(folder / f"{number:06d}.jpg")
            copies[-1].write_bytes(planted(file, arguments.seed, arguments.pad, arguments.crop))
        pool = pool_of([str(file) for file in [*originals, *copies]], folder)
        started = time.perf_counter()
        links = find_links(pool, np.arange(pool.rows), config, None)
        seconds = time.perf_counter() - started
    pairs = np.unique(np.sort(np.stack([links.first, links.second], axis=1), axis=1), axis=0)
    is_planted = pairs[:, 1] == pairs[:, 0] + count
    # Of a planted pair the two ends; of all others also copies of copies, which are as false.
    every = count * (2 * count - 1)
    among_originals = (pairs[:, 1] < count) & ~is_planted
    flagged_rows = {frozenset(pair) for pair in (pairs % count).tolist()} - {
        frozenset([row]) for row in range(count)
    }
    result = {
        "machine": describe_machine(),
        "images": count,
        "planted_pairs": count,
        "found_planted_pairs": int(is_planted.sum()),
        "recall": float(is_planted.sum() / count),
        "other_pairs": every - count,
        "flagged_other_pairs": int((~is_planted).sum()),
        "false_pair_rate": float((~is_planted).sum() / (every - count)),
        "flagged_pairs_of_originals": int(among_originals.sum()),
        "flagged_pairs_of_different_images": len(flagged_rows),
        "seconds": seconds,
    }
    if arguments.sheet:
        kept = (links.kind == NEAR) & (links.second < count) & (links.first < count)
        chosen = np.stack([links.first[kept], links.second[kept]], axis=1)
        chosen, where = np.unique(chosen, axis=0, return_index=True)
        names = [f"{links.distance[kept][place]:.0f} bits" for place in where]
        sheet(chosen[:60], names[:60], [str(file) for file in originals], arguments.sheet)
    if not arguments.json:
        for key, value in result.items():
            print(f"{key:<36}{value}")
        return
    print(json.dumps(result))


if __name__ == "__main__":
    main()
