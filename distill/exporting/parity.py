"""How an exported model compares with the one it was made from: features, size, time."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from echostill.platform.models import Encoder
from echostill.platform.models.exported import (
    INPUT,
    FeatureModel,
    FeatureModule,
    encoder_compute,
    machine,
    onnx_session,
    open_export,
)

BATCHES = (1, 8)
FEATURE_BATCH = 16
# The least cosine of any image's feature with torch's that an export must keep.
LEAST_COSINE: Mapping[str, float] = {"onnx-int8": 0.98}
LEAST_COSINE_FLOAT = 0.9999


@dataclass(frozen=True)
class Parity:
    """One form against the torch model."""

    form: str
    file: str
    bytes: int
    cosine_min: float  # over images, of the pooled features
    cosine_mean: float
    centred_cosine_min: float  # the same less the mean feature, where small errors show
    largest_difference: float  # of any feature value
    least_cosine: float  # what is asked of this form
    latency_ms: dict[str, float]  # median per batch, by batch size; empty where not timed

    @property
    def passes(self) -> bool:
        """Whether every image's feature is close enough."""
        return self.cosine_min >= self.least_cosine


def feature_parity(reference: np.ndarray, features: np.ndarray) -> tuple[float, float, float]:
    """Compare features (N, D) row by row.

    Returns:
        The least and the mean cosine, and the least cosine after the reference's mean feature has
        been subtracted from both (features share a large constant part, which flatters the first).
    """
    cosine = _cosine(reference, features)
    mean = reference.mean(axis=0)
    centred = _cosine(reference - mean, features - mean)
    return float(cosine.min()), float(cosine.mean()), float(centred.min())


def measure(
    encoder: Encoder,
    folder: Path,
    files: Mapping[str, str],
    pixels: np.ndarray,
    *,
    threads: int,
    repeats: int = 15,
) -> list[Parity]:
    """Compare every exported form with the torch model.

    Args:
        encoder: What was exported.
        folder: The export.
        files: The file of each form.
        pixels: (N, 3, S, S) uint8 images, none of which calibrated anything.
        threads: Threads of torch and of ONNX Runtime alike, for the timings.
        repeats: Timed runs; the median counts. 0 times nothing.
    """
    reference = _features(
        FeatureModel(encoder.name, "torch", encoder.image_size, "", encoder_compute(encoder)),
        pixels,
    )
    rows = []
    for form, file in files.items():
        model = open_export(folder / file, threads=threads)
        features = _features(model, pixels)
        least, mean, centred = feature_parity(reference, features)
        timed = form in ("onnx", "onnx-int8") and repeats > 0
        rows.append(
            Parity(
                form=form,
                file=file,
                bytes=(folder / file).stat().st_size,
                cosine_min=least,
                cosine_mean=mean,
                centred_cosine_min=centred,
                largest_difference=float(np.abs(reference - features).max()),
                least_cosine=LEAST_COSINE.get(form, LEAST_COSINE_FLOAT),
                latency_ms=_onnx_latency(folder / file, encoder.image_size, threads, repeats)
                if timed
                else {},
            )
        )
    return rows


def parity_report(
    encoder: Encoder,
    rows: Sequence[Parity],
    *,
    images: int,
    calibration_images: int,
    threads: int,
    repeats: int,
) -> dict[str, Any]:
    """Put the comparison into plain values: ``parity.json``."""
    versions = {"torch": torch.__version__}
    if any(row.form.startswith("onnx") for row in rows):
        import onnxruntime

        versions["onnxruntime"] = onnxruntime.__version__
    torch_latency = _torch_latency(encoder, threads, repeats) if repeats else {}
    return {
        "model": encoder.name,
        "image_size": encoder.image_size,
        "images": images,
        "calibration_images": calibration_images,
        "machine": machine(),
        "versions": versions,
        "threads": threads,
        "repeats": repeats,
        "torch_latency_ms": torch_latency,
        "forms": [{**asdict(row), "passes": row.passes} for row in rows],
    }


def describe(parity: Mapping[str, Any]) -> str:
    """Write the comparison as a table for the terminal."""
    head = ["form", "MB", "cosine min", "mean", "centred min", *(f"ms x{b}" for b in BATCHES)]

    def timed(latency: Mapping[str, float]) -> list[str]:
        return [f"{latency[str(b)]:.2f}" if latency else "-" for b in BATCHES]

    lines = [head, ["torch", "", "", "", "", *timed(parity["torch_latency_ms"])]]
    for row in parity["forms"]:
        cosines = (row["cosine_min"], row["cosine_mean"], row["centred_cosine_min"])
        lines.append(
            [
                row["form"],
                f"{row['bytes'] / 1e6:.2f}",
                *(f"{value:.6f}" for value in cosines),
                *timed(row["latency_ms"]),
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    table = "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    where = parity["machine"]
    return (
        f"{table}\nagainst torch on {parity['images']} images; {where['processor']}, "
        f"{where['cores']} cores, {parity['threads']} thread(s)"
    )


def _features(model: FeatureModel, pixels: np.ndarray) -> np.ndarray:
    steps = range(0, len(pixels), FEATURE_BATCH)
    return np.concatenate([model.features(pixels[i : i + FEATURE_BATCH]) for i in steps])


def _cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine: np.ndarray = (a * b).sum(axis=1) / np.maximum(lengths, 1e-30)
    return cosine


def _torch_latency(encoder: Encoder, threads: int, repeats: int) -> dict[str, float]:
    module = FeatureModule(encoder.cpu().eval())
    with _torch_threads(threads), torch.inference_mode():
        return {
            str(batch): _median_ms(
                lambda pixels: module(torch.from_numpy(pixels)), batch, encoder.image_size, repeats
            )
            for batch in BATCHES
        }


def _onnx_latency(path: Path, size: int, threads: int, repeats: int) -> dict[str, float]:
    session = onnx_session(path, threads)
    return {
        str(batch): _median_ms(
            lambda pixels: session.run(None, {INPUT: pixels}), batch, size, repeats
        )
        for batch in BATCHES
    }


def _median_ms(call: Callable[[np.ndarray], Any], batch: int, size: int, repeats: int) -> float:
    pixels = np.full((batch, 3, size, size), 0.5, dtype=np.float32)
    seconds = []
    for run in range(repeats + 3):  # the first three warm caches and are not counted
        started = time.perf_counter()
        call(pixels)
        if run >= 3:
            seconds.append(time.perf_counter() - started)
    return float(np.median(seconds) * 1e3)


@contextmanager
def _torch_threads(threads: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
