"""Does echostill compute on this GPU what it computes on CPUs, and how fast? In eight minutes.

    python benchmarks/gpu_check.py --out gpu.json
    python benchmarks/gpu_check.py --mini

First it says how long it will take. Then it compares a GPU with the CPU (crops, masks, features,
losses, gradient norms, a resumed run, a coreset), and measures rates on synthetic staged images:
matrix products, distillation, scoring, k-means; and what 3 million scored images and 200,000 images
x 400 epochs would take. A part that overruns its budget is stopped. `--mini` runs all of it on a
CPU with small models, which proves the program and says nothing about a GPU.

It needs this repository, a torch that sees the GPU and the packages of pyproject.toml, and no
network. Exit code: 0 all agreed, 1 a check failed or a part did not end, 2 wrong usage.
"""

import argparse
import importlib.util
import json
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

if importlib.util.find_spec("echostill") is None:
    print("echostill is not installed: pip install --no-index --find-links WHEELS .")
    sys.exit(2)

import numpy as np
import torch
from distill_common import POOL, TEACHER, pool_images, trained_teacher
from gpu_parts import (
    FULL,
    MINI,
    OverrunError,
    Part,
    Report,
    Scale,
    distillation_work,
    forward_work,
    matrix_rate,
    scoring_work,
    stopped_after,
)
from gpu_training import distillation_rate, models_agree, steps_hold, views_agree
from machine import describe_machine

from echostill.platform.computing.precision import autocast, computing_type
from echostill.platform.masking.masks import MaskSettings, draw_masks
from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel
from echostill.platform.models import create_encoder
from echostill.platform.training.batches import make_batch
from echostill.platform.training.collective import TrainingWorker
from echostill.platform.training.settings import TrainingSettings

LIMIT = 480.0  # seconds of all parts in full
GPU_RATE, CPU_RATE = 200e12, 0.3e12  # operations per second that an estimate starts from
PATIENCE = 10  # times a part's budget on a CPU, where it is only to end
STARTING = 25.0  # seconds: interpreter, imports, first kernels


def coreset_agrees(scale: Scale, report: Report, rates: dict[str, float]) -> None:
    """Images that a coreset of the device's features and scores has in common with the CPU's.

    Views of the quickstart's images, its teacher and a fresh proxy, in float32 on the CPU and in
    the device's own precision. One in ten is chosen; where the ranks of two are almost equal,
    rounding exchanges them, so not all are the same.
    """
    import pyarrow as pa

    from echostill.curation.scoring.gradient import prediction_gradient_norms
    from echostill.curation.selection.core import select_rows

    teacher = trained_teacher("usfm-micro", TEACHER)
    images = pool_images(POOL, teacher.image_size)
    settings = TrainingSettings(batch_size=scale.views // 4, crops_on="cpu")
    torch.manual_seed(0)
    proxy = MaskedImageModel(create_encoder("tinyusfm-micro"), DecoderSettings()).eval()
    proxy.requires_grad_(False)
    masks = MaskSettings().scaled_to(proxy.encoder.image_size, proxy.encoder.patch_size)
    batches = [
        make_batch(images, settings, 0, teacher.image_size, step, TrainingWorker())
        for step in range(4)
    ]

    def scored(device: torch.device, kind: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
        features, norms = [], []
        for batch in batches:
            pixels = batch.to(device).pixels
            drawn = draw_masks(masks, 0, np.zeros(len(batch), int), ["all"] * len(batch), device)
            with torch.inference_mode(), autocast(device, kind):
                features.append(teacher.to(device)(pixels).pooled.float().cpu())
                norms.append(prediction_gradient_norms(proxy.to(device), pixels, drawn)[0].cpu())
        return torch.cat(features).numpy(), torch.cat(norms).float().numpy()

    def chosen(feature: np.ndarray, norm: np.ndarray) -> np.ndarray:
        ids = pa.array([f"{row:032x}" for row in range(len(norm))])
        scores = {"image_id": ids, "gradient_mean": norm, "gradient_std": np.zeros_like(norm)}
        groups = pa.table({"image_id": ids, "group_id": ids})
        table = select_rows(feature, pa.table(scores), groups, max(len(norm) // 10, 4))
        found: np.ndarray = table["selected"].to_numpy()
        return found

    own = computing_type("auto", scale.device) if scale.on_gpu else torch.bfloat16
    one = scored(torch.device("cpu"), torch.float32)
    other = scored(scale.device, own)
    cosine = (one[0] * other[0]).sum(1) / np.linalg.norm(one[0], axis=1)
    cosine /= np.linalg.norm(other[0], axis=1)
    report.least(f"{own}: features of real images, smallest cosine", cosine.min(), 0.999)
    ranks = [values.argsort().argsort() for values in (one[1], other[1])]
    report.least("gradient score: rank correlation", np.corrcoef(*ranks)[0, 1], 0.99)
    both = chosen(*one) & chosen(*other)
    overlap = both.sum() / chosen(*one).sum()
    report.least(f"coreset of {len(one[1])} views: share in common", overlap, 0.8)


def clustering_rate(scale: Scale, report: Report, rates: dict[str, float]) -> None:
    """Seconds of k-means by FAISS on the CPU and, where it is built for them, on a GPU."""
    import faiss

    from echostill.curation.selection.kmeans import train_centroids

    sample = torch.randn(min(scale.vectors, 256 * scale.clusters), scale.dim, device=scale.device)
    rows = torch.nn.functional.normalize(sample, dim=1).cpu().numpy()
    gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    report.values |= {"vectors": scale.vectors, "trained on": len(rows), "clusters": scale.clusters}
    found = {}
    for name, ids in (("cpu", ()), ("gpu", (0,))):
        if name == "gpu" and not (scale.on_gpu and gpus):
            report.values["gpu seconds"] = "not measured: FAISS here was built without GPUs"
            continue
        started = time.perf_counter()
        centroids = train_centroids(rows, scale.clusters, iterations=10, seed=0, gpus=ids)
        report.values[f"{name} seconds, 10 iterations"] = round(time.perf_counter() - started, 2)
        found[name] = (rows[:5000] @ centroids.T).max(axis=1).mean()
        piece, seconds = rows[:100_000], time.perf_counter()
        from echostill.curation.selection.kmeans import flat_index

        flat_index(centroids, ids).search(piece, 1)
        pace = len(piece) / (time.perf_counter() - seconds)
        report.values[f"{name} seconds to assign all"] = round(scale.vectors / pace, 2)
    if len(found) == 2:
        report.most("k-means, mean cosine, relative", abs(found["gpu"] / found["cpu"] - 1), 1e-2)


def scoring_parts() -> list[Part]:
    """The parts of scoring, which is a module of its own; none where it is not there."""
    if importlib.util.find_spec("gpu_scoring") is None:
        return []
    import gpu_scoring

    def sizes(scale: Scale) -> Any:
        return gpu_scoring.Sizes() if scale.on_gpu else gpu_scoring.SMALL

    def precision(scale: Scale) -> str:
        return "auto" if scale.on_gpu else "bfloat16"

    def agrees(scale: Scale, report: Report, rates: dict[str, float]) -> None:
        """Features, gradient norms and a coreset of the real scoring models."""
        found = gpu_scoring.correctness(sizes(scale), scale.device.type, precision(scale))
        report.least("scoring: smallest cosine", found.pop("least cosine of features"), 0.999)
        least = found.pop("rank correlation of gradient norms")
        # Images of fresh networks differ by little: in miniature there are too few to rank.
        report.least("scoring: rank correlation", least, 0.99 if scale.on_gpu else 0.9)
        report.least("scoring: coreset in common", found.pop("coreset overlap"), 0.7)
        report.values |= found

    def paced(scale: Scale, report: Report, rates: dict[str, float]) -> None:
        """Images per second of a scoring worker."""
        found = gpu_scoring.rate(sizes(scale), scale.device.type, precision(scale))
        rates["scoring"] = found["images/s"]
        report.values |= {name: round(value, 4) for name, value in found.items()}

    def comparing(scale: Scale, gpu: float, cpu: float) -> float:
        return 10 + gpu_scoring.Sizes().compared * scoring_work(scale, 5, 2) * (1 / cpu + 1 / gpu)

    def pacing(scale: Scale, gpu: float, cpu: float) -> float:
        return 20 + 1.5 * gpu_scoring.Sizes().timed * scoring_work(scale, 5, 2) / gpu

    return [Part("scoring", 50, comparing, agrees), Part("scoring rate", 40, pacing, paced)]


def parts() -> list[Part]:
    """List the parts in order; budgets add up to the limit, less the start."""
    listed = [
        Part("matrix rate", 15, lambda s, g, c: 6.0, matrix_rate),
        Part("views", 30, lambda s, g, c: 4.0 + s.views * 2e-3, views_agree),
        Part(
            "models",
            60,
            lambda s, g, c: 8.0 + s.compared * distillation_work(s) * (1 / c + 2 / g),
            models_agree,
        ),
        Part("steps", 60, lambda s, g, c: 15.0 + 36 * 32 * distillation_work(s) / g, steps_hold),
        Part("coreset", 40, lambda s, g, c: 20.0, coreset_agrees),
        Part("distillation", 80, lambda s, g, c: 15.0 + 1.25 * s.seconds, distillation_rate),
        Part(
            "k-means",
            80,
            lambda s, g, c: 5.0 + 22 * 256 * s.clusters**2 * s.dim * (1 / c + 2 / g),
            clustering_rate,
        ),
    ]
    listed += scoring_parts()
    assert sum(part.budget for part in listed) <= LIMIT - STARTING
    return listed


def estimate(listed: list[Part]) -> float:
    """Seconds of the full form, at stated rates, each part at most its budget."""
    return STARTING + sum(min(p.work(FULL, GPU_RATE, CPU_RATE), p.budget) for p in listed)


def run_part(part: Part, scale: Scale, rates: dict[str, float]) -> dict[str, Any]:
    """Run a part within its budget; what it raises is an entry, not the end."""
    report, started, state = Report(), time.perf_counter(), "done"
    budget = part.budget * (1 if scale.on_gpu else PATIENCE)
    try:
        with stopped_after(budget):
            part.run(scale, report, rates)
    except OverrunError:
        state = f"stopped after {budget:.0f} s"
    except Exception as error:
        traceback.print_exc()
        state = f"failed: {type(error).__name__}: {error}"
    return {
        "part": part.name,
        "state": state,
        "seconds": round(time.perf_counter() - started, 2),
        "values": report.values,
        "checks": [
            {
                "name": check.name,
                "found": check.found,
                "bound": check.bound,
                "wanted": "at least" if check.at_least else "at most",
                "passed": check.passed,
            }
            for check in report.checks
        ],
    }


def show(entry: dict[str, Any]) -> None:
    """Print what a part found."""
    print(f"\n{entry['part']}: {entry['state']}, {entry['seconds']:.1f} s")
    for check in entry["checks"]:
        state = "ok  " if check["passed"] else "FAIL"
        print(
            f"  {state} {check['name']:<52} {check['found']:<12.4g} "
            f"{check['wanted']} {check['bound']:g}"
        )
    for name, value in entry["values"].items():
        print(f"       {name:<52} {value}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write everything to this JSON file")
    parser.add_argument("--mini", action="store_true", help="small models on a CPU")
    parser.add_argument("--batch", type=int, help="images of a training step")
    parser.add_argument("--only", nargs="+", help="names of the parts to run")
    options = parser.parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # into a file too, part by part
    listed = parts()
    unknown = set(options.only or ()) - {part.name for part in listed}
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if options.out is not None and not options.out.parent.is_dir():
        parser.error(f"--out: there is no folder '{options.out.parent}'")
    if options.batch is not None and options.batch < 1:
        parser.error("--batch must be at least 1")
    if not options.mini and not torch.cuda.is_available():
        parser.error("torch sees no GPU here: install one that fits the driver, or use --mini")
    scale = MINI if options.mini else FULL
    if options.batch:
        scale = replace(scale, batch=options.batch)
    expected = estimate(listed)
    device = torch.cuda.get_device_name() if scale.on_gpu else "CPU, in miniature"
    print(f"{device}; {describe_machine()}")
    print(
        f"distillation {distillation_work(FULL) / 1e9:.1f} GFLOP per image "
        f"({FULL.teacher} {forward_work(FULL.teacher) / 1e9:.1f} a pass), "
        f"scoring {scoring_work(FULL, 5, 2) / 1e9:.1f}; in full about {expected:.0f} s "
        f"of {LIMIT:.0f} s at {GPU_RATE / 1e12:.0f} and {CPU_RATE / 1e12:.1f} TFLOP/s"
    )
    started, rates, entries = time.perf_counter(), {"matrix": 1.0}, []
    for part in listed:
        if options.only and part.name not in options.only:
            continue
        entries.append(run_part(part, scale, rates))
        show(entries[-1])
    passed = all(
        entry["state"] == "done" and all(check["passed"] for check in entry["checks"])
        for entry in entries
    )
    result = {
        "machine": describe_machine(),
        "device": device,
        "mini": options.mini,
        "estimated_seconds": round(expected, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "passed": passed,
        "rates": rates,
        "parts": entries,
    }
    if not scoring_parts():
        print("\nscoring: not measured (there is no benchmarks/gpu_scoring.py)")
    print(f"\n{'all agreed' if passed else 'NOT all agreed'}, {result['seconds']:.0f} s")
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
