"""Ingest against a bare decode-and-encode loop on all cores: images per second, in steady state.

    python benchmarks/ingest_throughput.py --json

The bare loop is a process per core that reads a file, decodes it, shrinks it and encodes it as the
pool stores it: the same library calls, and nothing else (no ids, groups, quality columns, hashes,
quarantine, tables, Ray). Neither looks for sectors (benchmarks/deidentification.py does).
Both run in turn, several times, on the same files; the medians are compared. Start-up (Python,
Ray, the workers) is left out of the rates and printed beside them. Bar: ratio at least 0.80.
``processor_ratio`` compares the processor's seconds per image, which others on the machine disturb
less; it does not see what Ray's own processes take.

The sample images were shrunk to 224 pixels to be shipped. Scanners save 640 to 1,280, so the files
are first made anew with --longest pixels, as JPEG in colour, as scanners save grey ones too. What
ingest adds to an image does not grow with it, so the ratio is lower on smaller files: --longest 0
takes them as they are.

``--dicom`` compares CPU seconds of reading DICOM, with and without de-identification, with a plain
loop of pydicom and Pillow instead (``ingest_dicom.py``): of stills and cines made from the sample
images, or of a folder's files.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from ingest_dicom import compare, make_dicom
from machine import describe_machine
from PIL import Image
from steady import Pace, run_stage, tile_files

DEFAULT_SOURCE = Path(__file__).resolve().parent.parent / "examples" / "quickstart" / "pool"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


def bare(files: list[str], side: int) -> float:
    """Decode and encode some files, grey as grey; the processor's seconds."""
    from echostill.platform.imaging import images

    started = time.process_time()
    for name in files:
        with open(name, "rb") as file:
            data = file.read()
        picture = images.resize_longest(images.decode_image(data), side)
        images.encode_png(images.drop_equal_channels(picture))
    return time.process_time() - started


def bare_pace(files: list[str], side: int, cores: int) -> tuple[float, float]:
    """Images per second on so many cores, start-up left out, and processor seconds per image."""
    pieces = [files[start : start + 16] for start in range(0, len(files), 16)]
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.starmap(bare, [(files[:16], side)] * cores * 2, chunksize=1)  # imports, caches
        started = time.perf_counter()
        processor = pool.starmap(bare, [(piece, side) for piece in pieces], chunksize=1)
        return len(files) / (time.perf_counter() - started), sum(processor) / len(files)


def our_pace(source: Path, store: Path, per_shard: int, side: int, cores: int) -> Pace:
    settings = [f"source={source}", f"files_per_shard={per_shard}", f"stage_side={side}"]
    settings += [f"workers={cores}", "deidentify.pixels=off"]
    return run_stage("ingest", store, settings)


def as_saved_by_a_scanner(path: Path, longest: int) -> str:
    """Replace a file by a JPEG whose longest side has so many pixels; return its path."""
    with Image.open(path) as image:
        scale = longest / max(image.size)
        size = tuple(round(side * scale) for side in image.size)
        frame = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    path.unlink()
    target = path.with_suffix(".jpg")
    frame.save(target, quality=95)
    return str(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=DEFAULT_SOURCE, help="folder of images")
    parser.add_argument("--images", type=int, default=4000, help="files, repeated where fewer")
    parser.add_argument("--per-shard", type=int, default=125)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--longest", type=int, default=800, help="pixels of the files; 0: as is")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dicom", nargs="?", const="", metavar="FOLDER", help="DICOM, made or of a folder"
    )
    parser.add_argument("--frames", type=int, default=12, help="of a cine that --dicom makes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = of_dicom(options) if options.dicom is not None else of_images(options)
    for name, value in result.items():
        print(f"{name:<34}{value}")
    if options.json:
        print(json.dumps(result))


def of_dicom(options: argparse.Namespace) -> dict[str, object]:
    """Compare the reading of DICOM files."""
    with tempfile.TemporaryDirectory(prefix="echostill-dicom-") as folder:
        if options.dicom:
            found = Path(options.dicom).rglob("*")
            files = sorted(str(path) for path in found if path.is_file())
        else:
            pictures = tile_files(options.source, Path(folder) / "files", options.images, SUFFIXES)
            longest = options.longest or 800
            files = make_dicom(pictures, Path(folder) / "dicom", longest, options.frames)
        return {"machine": describe_machine(), **compare(files, options.side, options.rounds)}


def of_images(options: argparse.Namespace) -> dict[str, object]:
    """Compare the ingest of image files, as a user runs it."""
    cores = len(os.sched_getaffinity(0))
    paces, bare_paces = [], []
    with tempfile.TemporaryDirectory(prefix="echostill-ingest-") as folder:
        source = Path(folder) / "files"
        files = tile_files(options.source, source, options.images, SUFFIXES)
        if options.longest:
            files = [as_saved_by_a_scanner(Path(name), options.longest) for name in files]
        for number in range(options.rounds):
            bare_paces.append(bare_pace(files, options.side, cores))
            store = Path(folder) / f"store-{number}"
            paces.append(our_pace(source, store, options.per_shard, options.side, cores))
            shutil.rmtree(store)
            print(
                f"round {number}: bare {bare_paces[-1][0]:.1f} images/s, "
                f"ingest {paces[-1].rows_per_second:.1f} images/s "
                f"(start-up {paces[-1].startup_seconds:.1f} s)",
                flush=True,
            )
    ours = statistics.median(pace.rows_per_second for pace in paces)
    alone = statistics.median(pace for pace, _ in bare_paces)
    processor = statistics.median(pace.processor_seconds for pace in paces)
    processor_alone = statistics.median(seconds for _, seconds in bare_paces)
    return {
        "machine": describe_machine(),
        "images": options.images,
        "longest_side": options.longest or "as it is",
        "workers": cores,
        "images_per_second": round(ours, 2),
        "bare_images_per_second": round(alone, 2),
        "ratio": round(ours / alone, 4),
        "processor_ratio": round(processor_alone / processor, 4),
        "startup_seconds": round(statistics.median(p.startup_seconds for p in paces), 1),
    }


if __name__ == "__main__":
    main()
