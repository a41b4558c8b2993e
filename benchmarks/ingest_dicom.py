"""DICOM through ingest's own reader against a plain loop of pydicom and Pillow: CPU seconds.

Run as ``ingest_throughput.py --dicom``. The plain loop reads a file, decodes its frames, shrinks
each and encodes it as PNG; it has no ids, quality columns, hashes, quarantine or tables. One
process does each in turn, so that others on the machine disturb all alike.
"""

import io
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, iter_pixels
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

KINDS = ("grey still", "colour still", "JPEG still", "grey cine", "colour cine", "JPEG cine")
_ULTRASOUND, _CINE = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"


def make_dicom(pictures: list[str], folder: Path, longest: int, frames: int) -> list[str]:
    """Write each picture as DICOM on a black screen, the kinds in turn; return their paths."""
    folder.mkdir(parents=True)
    files = []
    for number, path in enumerate(pictures):
        kind = KINDS[number % len(KINDS)]
        count = frames if kind.endswith("cine") else 1
        with Image.open(path) as image:
            shown = [_on_screen(image, longest, step) for step in range(count)]
        files.append(str(folder / f"{number:06d}.dcm"))
        _dataset(kind, shown, number).save_as(files[-1], enforce_file_format=True)
    return files


def _on_screen(image: Image.Image, longest: int, step: int) -> np.ndarray:
    """Draw a picture on a screen of 4 to 3, a little higher with every step, as tissue moves."""
    screen = Image.new("RGB", (longest, longest * 3 // 4))
    side = longest * 5 // 8
    tissue = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    moved = np.roll(np.asarray(tissue), -2 * step, axis=0)
    screen.paste(Image.fromarray(moved), ((longest - side) // 2, longest // 16))
    return np.asarray(screen)


def _dataset(kind: str, frames: list[np.ndarray], number: int) -> pydicom.Dataset:
    grey, jpeg = kind.startswith("grey"), kind.startswith("JPEG")
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    dataset.SOPClassUID = _CINE if len(frames) > 1 else _ULTRASOUND
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[kind, str(number)])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[str(number // 8)])
    dataset.Modality, dataset.PatientID = "US", f"patient {number // 8}"
    dataset.Rows, dataset.Columns = frames[0].shape[:2]
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1 if grey else 3, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PhotometricInterpretation = "MONOCHROME2" if grey else "RGB"
    dataset.NumberOfFrames = len(frames)
    if not grey:
        dataset.PlanarConfiguration = 0
    if jpeg:
        dataset.PhotometricInterpretation = "YBR_FULL_422"
        dataset.PixelData = encapsulate([_jpeg(frame) for frame in frames])
    else:
        stored = [frame[..., 0] if grey else frame for frame in frames]
        dataset.PixelData = b"".join(frame.tobytes() for frame in stored)
    return dataset


def _jpeg(frame: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(frame).save(sink, format="JPEG", quality=90)
    return sink.getvalue()


def plain(files: list[str], side: int) -> tuple[int, float]:
    """Read files with pydicom and Pillow alone; the frames and the processor's seconds."""
    started, frames = time.process_time(), 0
    for name in files:
        dataset = pydicom.dcmread(name)
        for values in iter_pixels(dataset):
            picture = Image.fromarray(_shown(values, dataset))
            scale = side / max(picture.size)
            if scale < 1:
                size = round(picture.width * scale), round(picture.height * scale)
                picture = picture.resize(size, Image.Resampling.BICUBIC)
            picture.save(io.BytesIO(), format="PNG")
            frames += 1
    return frames, time.process_time() - started


def _shown(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
    if values.dtype != np.uint8:
        values = (values * (255 / max(int(values.max()), 1))).astype(np.uint8)
    return values


def through_ingest(files: list[str], side: int, pixels: str) -> tuple[int, float]:
    """Read files as a worker of ingest does; the frames and the processor's seconds."""
    from echostill.curation.ingestion.settings import IngestSettings, Source
    from echostill.curation.ingestion.sources import read_source

    settings = IngestSettings(stage_side=side, deidentify={"pixels": pixels})
    sources = [Source(name, Path(name).name) for name in files]
    started = time.process_time()
    frames = sum(len(read_source(source, settings)) for source in sources)
    return frames, time.process_time() - started


def readable(files: list[str], side: int) -> list[str]:
    """Return the files that the plain loop can read."""
    kept = []
    for name in files:
        try:
            plain([name], side)
        except Exception as error:
            print(f"left out: {Path(name).name}: {type(error).__name__}")
        else:
            kept.append(name)
    return kept


def compare(files: list[str], side: int, rounds: int) -> dict[str, object]:
    """Measure all of them in turn; seconds for all frames, and how many times the plain loop's."""
    ways: dict[str, Callable[[list[str], int], tuple[int, float]]] = {
        "plain": plain,
        "ingest, pixels: off": partial(through_ingest, pixels="off"),
        "ingest, pixels: sector": partial(through_ingest, pixels="sector"),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    frames = {}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        files = pool.apply(readable, (files, side))
        for way in ways.values():  # imports, caches
            pool.apply(way, (files[:6], side))
        for number in range(rounds):
            for name, way in ways.items():
                frames[name], seconds = pool.apply(way, (files, side))
                spent[name].append(seconds)
            ratios = ", ".join(
                f"{name} {values[-1]:.2f} s ({values[-1] / spent['plain'][-1]:.2f})"
                for name, values in spent.items()
            )
            print(f"round {number}: {ratios}", flush=True)
    seconds_of = {name: statistics.median(values) for name, values in spent.items()}
    return {
        "files": len(files),
        "frames": frames["plain"],
        **{f"{name} (CPU s)": round(value, 2) for name, value in seconds_of.items()},
        **{
            f"{name} / plain": round(seconds_of[name] / seconds_of["plain"], 2)
            for name in list(ways)[1:]
        },
    }
