"""The scoring part of gpu_check.py: is a GPU right, and is it kept busy?

    python benchmarks/gpu_scoring.py            # in full, where there is a GPU
    python benchmarks/gpu_scoring.py --small    # in miniature, in seconds, on a CPU

Correctness compares features, gradient norms and the coreset that follows from them with float32 on
the CPU. The rate is that of a worker (decoding ahead in threads, bytes to the device, results read
late) on staged synthetic images, beside that of the models alone and of the device's largest matrix
product in the same precision. Operations are counted as 2 per multiplication and addition.
"""

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from echostill.curation.scoring.decoding import ahead
from echostill.curation.scoring.models import ScoringModels
from echostill.curation.selection.kmeans import train_centroids
from echostill.platform.computing.precision import Precision, computing_type
from echostill.platform.computing.transfer import fetch, staged
from echostill.platform.imaging.images import decode_staged, encode_png, to_square
from echostill.platform.masking.masks import MaskSettings
from echostill.platform.masking.mim import MaskedImageModel, ReconstructionSettings
from echostill.platform.models import create_encoder
from echostill.platform.models.complexity import gflops


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    teacher: str = "usfm"
    student: str = "tinyusfm"
    snapshots: int = 5
    draws: int = 2
    compared: int = 96  # images scored on both devices
    timed: int = 8192  # images scored for the rate
    batch: int = 256
    stored: int = 512  # distinct images that the timed ones repeat
    decoders: int = 12  # threads
    matrix: int = 8192  # side of the matrices whose product is timed
    products: int = 50


SMALL = Sizes(
    teacher="usfm-micro",
    student="tinyusfm-micro",
    snapshots=2,
    compared=24,
    timed=32,
    batch=8,
    stored=16,
    decoders=1,
    matrix=256,
    products=3,
)


def synthetic_images(count: int, seed: int = 0) -> list[bytes]:
    """Encoded speckle with a bright blob, grey, 256 pixels: what a pool stages."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:256, :256]
    images = []
    for _ in range(count):
        y, x, width = *rng.uniform(40, 216, 2), rng.uniform(300, 4000)
        blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / width)
        speckle = rng.rayleigh(0.25, (256, 256)) * rng.uniform(0.3, 1)
        values = (255 * np.clip(0.6 * blob + speckle, 0, 1)).astype(np.uint8)
        images.append(encode_png(values))
    return images


def build(sizes: Sizes, device: str, precision: Precision) -> ScoringModels:
    """Models with fresh weights, always the same ones: rates and rounding need no others."""
    torch.manual_seed(0)
    teacher = create_encoder(sizes.teacher)
    proxies = [MaskedImageModel(create_encoder(sizes.student)) for _ in range(sizes.snapshots)]
    return ScoringModels(
        teacher,
        proxies,
        masks=MaskSettings(),
        draws=sizes.draws,
        seed=0,
        loss="mse",
        reconstruction=ReconstructionSettings(),
        device=device,
        precision=precision,
    )


def squares(models: ScoringModels, images: list[bytes]) -> dict[int, torch.Tensor]:
    """Decode a batch for the models, in memory that their device copies from."""
    pictures = [decode_staged(image) for image in images]
    return {
        size: staged(np.stack([to_square(p, size)[:1] for p in pictures]), models.device)
        for size in set(models.sizes)
    }


def scored(models: ScoringModels, images: list[bytes], batch: int) -> dict[str, np.ndarray]:
    """Score images; arrays by column."""
    parts = [
        fetch(models(squares(models, images[start : start + batch]))).numpy()
        for start in range(0, len(images), batch)
    ]
    edges = np.cumsum(list(models.widths.values()))[:-1]
    return dict(zip(models.widths, np.split(np.concatenate(parts), edges, axis=1), strict=True))


def correctness(sizes: Sizes, device: str, precision: Precision) -> dict[str, float]:
    """Compare a device's numbers with those of the CPU in float32."""
    images = synthetic_images(sizes.compared, seed=1)
    exact = scored(build(sizes, "cpu", "float32"), images, sizes.batch)
    found = scored(build(sizes, device, precision), images, sizes.batch)
    cosine = (exact["feature"] * found["feature"]).sum(axis=1)
    gradient, other = (values["gradient"].mean(axis=1) for values in (exact, found))
    chosen, again = (_coreset(values) for values in (exact, found))
    return {
        "least cosine of features": float(cosine.min()),
        "largest relative error of gradient norms": float(np.abs(other / gradient - 1).max()),
        "rank correlation of gradient norms": _rank_correlation(gradient, other),
        "coreset overlap": len(chosen & again) / len(chosen),
    }


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    ranks = [values.argsort().argsort() for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def _coreset(scores: dict[str, np.ndarray]) -> set[int]:
    """Choose a third: of each cluster what is near its centre and has a large gradient."""
    feature = scores["feature"]
    clusters = max(len(feature) // 12, 2)
    centroids = train_centroids(feature, clusters, iterations=20, seed=0)
    nearest = (feature @ centroids.T).argmax(axis=1)
    near, large = 1 - (feature * centroids[nearest]).sum(axis=1), -scores["gradient"].mean(axis=1)
    chosen: set[int] = set()
    for cluster in range(clusters):
        rows = np.flatnonzero(nearest == cluster)
        ranks = near[rows].argsort().argsort() + large[rows].argsort().argsort()
        chosen |= set(rows[np.argsort(ranks, kind="stable")[: -(-len(rows) // 3)]].tolist())
    return chosen


def matrix_rate(sizes: Sizes, device: str, precision: Precision) -> float:
    """Operations per second of the device's largest matrix products."""
    kind = computing_type(precision, torch.device(device))
    first, second = (torch.randn(sizes.matrix, sizes.matrix, device=device).to(kind) for _ in "ab")
    for _ in range(3):
        first @ second
    _wait(device)
    started = time.perf_counter()
    for _ in range(sizes.products):
        first @ second
    _wait(device)
    return 2 * sizes.matrix**3 * sizes.products / (time.perf_counter() - started)


def operations(sizes: Sizes) -> float:
    """Operations of one image: the teacher, and each proxy for each draw; decoders left out."""
    student = gflops(create_encoder(sizes.student))
    one = gflops(create_encoder(sizes.teacher)) + sizes.snapshots * sizes.draws * student
    return one * 1e9


def rate(sizes: Sizes, device: str, precision: Precision) -> dict[str, float]:
    """Score staged images as a worker does, and say what the device made of its time."""
    models = build(sizes, device, precision)
    stored = synthetic_images(sizes.stored)
    first = squares(models, stored[: sizes.batch])
    per_image = operations(sizes)
    for _ in range(2):
        fetch(models(first)).numpy()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    waited, seconds = _worker_pace(sizes, models, stored)
    images = sizes.timed / seconds
    peak = matrix_rate(sizes, device, precision)
    found = {
        "images/s": images,
        "images/s of the models alone": _models_pace(sizes, models, first),
        "share of the matrix rate": images * per_image / peak,
        "matrix TFLOP/s": peak / 1e12,
        "share of time in data wait": waited / seconds,
        "hours for 3M images": 3e6 / images / 3600,
    }
    if device == "cuda":
        found["peak memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def _worker_pace(sizes: Sizes, models: ScoringModels, stored: list[bytes]) -> tuple[float, float]:
    """Seconds that a worker waited for decoding, and seconds in all."""
    names = [stored[number % len(stored)] for number in range(sizes.timed)]
    pieces = [names[start : start + sizes.batch] for start in range(0, sizes.timed, sizes.batch)]
    with ThreadPoolExecutor(sizes.decoders) as pool:

        def decoded() -> Iterator[dict[int, torch.Tensor]]:
            waiting = [pool.submit(squares, models, piece) for piece in pieces[: sizes.decoders]]
            for number in range(len(pieces)):
                following = number + sizes.decoders
                found = waiting.pop(0).result()
                if following < len(pieces):
                    waiting.append(pool.submit(squares, models, pieces[following]))
                yield found

        waited, late = 0.0, []
        started = clock = time.perf_counter()
        for batch in ahead(decoded(), 2):
            waited += time.perf_counter() - clock
            late.append(fetch(models(batch)))
            if len(late) > 1:
                late.pop(0).numpy()
            clock = time.perf_counter()
        late.pop().numpy()
        return waited, time.perf_counter() - started


def _models_pace(sizes: Sizes, models: ScoringModels, batch: dict[int, torch.Tensor]) -> float:
    rounds = max(sizes.timed // sizes.batch // 2, 1)
    started = time.perf_counter()
    for _ in range(rounds):
        last = fetch(models(batch))
    last.numpy()
    return rounds * len(next(iter(batch.values()))) / (time.perf_counter() - started)


def synchronising_calls(sizes: Sizes, device: str, precision: Precision) -> list[str]:
    """Names of the calls of one batch that make the host wait for the device.

    On a CPU, where nothing waits, those that would: reading a value, and copies to the host.
    """
    from torch.profiler import ProfilerActivity, profile

    models = build(sizes, device, precision)
    batch = squares(models, synthetic_images(sizes.batch))
    models(batch)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        models(batch)
    names = {event.key for event in found.key_averages()}
    waits = ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero")
    return sorted(name for name in names if name in waits or "Synchronize" in name)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def check(sizes: Sizes, device: str, precision: Precision) -> dict[str, Any]:
    """Everything: correctness, rate and calls that wait."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "precision": precision,
        "correctness": correctness(sizes, device, precision),
        "rate": rate(sizes, device, precision),
        "synchronising calls": synchronising_calls(sizes, device, precision),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="in miniature")
    parser.add_argument("--precision", default="bfloat16")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(json.dumps(check(SMALL if options.small else Sizes(), device, options.precision)))


if __name__ == "__main__":
    main()
