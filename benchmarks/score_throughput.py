"""Scoring against a bare loop in one process with as many threads: images per second, steady.

    python benchmarks/score_throughput.py --json

The bare loop decodes the same staged images, runs the teacher, and takes the proxy's gradient norms
at every snapshot and mask draw: the same library calls, and nothing else (no tables, no quarantine,
no shards, no Ray). Both run in turn, several times; the medians are compared. Start-up (Python,
Ray, loading the models) is left out of the rates and printed beside them. Bar: ratio >= 0.90.
``processor_ratio`` compares the processor's seconds per image, which others on the machine disturb
less; it does not see what Ray's own processes take.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine
from steady import run_stage, tile_files

from echostill.curation import IngestConfig, ingest
from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.scoring.gradient import prediction_gradient_norms
from echostill.curation.scoring.worker import ProxySettings
from echostill.platform import runtime
from echostill.platform.imaging.images import decode_staged, to_square
from echostill.platform.masking.masks import Masks, MaskSettings, frequency_mask, spatial_mask
from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel
from echostill.platform.masking.mim_training import snapshot_name
from echostill.platform.models import create_encoder, load_weights, save_weights
from echostill.platform.tables.store import Store

DEFAULT_SOURCE = Path(__file__).resolve().parent.parent / "examples" / "quickstart" / "pool"
DRAWS = 2
SEEN = ProxySettings().snapshots


class BareLoop:
    """Models loaded once; then images to numbers as fast as one process can."""

    def __init__(self, store: Store, weights: Path, teacher: str, student: str, batch: int) -> None:
        from safetensors.torch import load as load_tensors

        self.batch = batch
        self.teacher = create_encoder(teacher)
        load_weights(self.teacher, str(weights))
        self.teacher.eval().requires_grad_(False)
        folder, self.proxies = store.run("proxy"), []
        for name in sorted(name for name in folder.list() if name.startswith("snapshot-")):
            proxy = MaskedImageModel(create_encoder(student), DecoderSettings())
            saved = load_tensors(folder.read(name))
            proxy.load_state_dict({k.removeprefix("model."): v for k, v in saved.items()})
            self.proxies.append(proxy.eval().requires_grad_(False))
        assert folder.exists(snapshot_name(SEEN))
        encoder = self.proxies[0].encoder
        settings = MaskSettings().scaled_to(encoder.image_size, encoder.patch_size)
        rng = np.random.default_rng(0)
        self.masks = [
            (
                spatial_mask(rng.random((1, settings.spatial.count)), settings.spatial),
                frequency_mask(rng.random((1, settings.frequency.count)), settings.frequency),
            )
            for _ in range(DRAWS)
        ]
        self.images = store.open_pool().read(["image"])["image"].to_pylist()

    def pace(self, count: int) -> tuple[float, float]:
        """Images per second over so many images, and processor seconds per image."""
        self.run(self.images[: self.batch])
        started, processor = time.perf_counter(), time.process_time()
        for start in range(0, count, self.batch):
            self.run(self.images[start : min(start + self.batch, count)])
        processor = time.process_time() - processor
        return count / (time.perf_counter() - started), processor / count

    def run(self, images: list[bytes]) -> None:
        decoded = [decode_staged(data) for data in images]
        pixels = {}
        for size in {self.teacher.image_size, self.proxies[0].encoder.image_size}:
            square = np.stack([to_square(image, size) for image in decoded])
            pixels[size] = torch.from_numpy(square).float() / 255
        with torch.inference_mode():
            pooled = self.teacher(pixels[self.teacher.image_size]).pooled
            torch.nn.functional.normalize(pooled, dim=1)
        target = pixels[self.proxies[0].encoder.image_size]
        for proxy in self.proxies:
            for spatial, frequency in self.masks:
                shape = (len(target), -1, -1)
                masks = Masks(spatial.expand(shape), frequency.expand(shape))
                prediction_gradient_norms(proxy, target, masks, "mse")


def prepare(folder: Path, options: argparse.Namespace) -> tuple[Store, Path, list[str]]:
    """Make a pool, a teacher and a trained proxy, and score once: not part of what is timed."""
    tile_files(options.source, folder / "files", options.images, (".png", ".jpg", ".jpeg"))
    store = Store(str(folder / "store"))
    whole = DeidentifySettings(pixels="off")
    ingest(
        IngestConfig(
            store=store.root, source=str(folder / "files"), deidentify=whole, progress=False
        )
    )
    runtime.disconnect()
    torch.manual_seed(0)
    weights = folder / "teacher.safetensors"
    save_weights(create_encoder(options.teacher), weights, {})
    training = f"{{steps: {SEEN}, batch_size: 4}}"
    settings = [
        f"teacher={{model: {options.teacher}, weights: {weights}}}",
        f"student={options.student}",
        f"proxy={{sample: 8, training: {training}}}",
        f"batch_size={options.batch}",
        f"rows_per_shard={options.per_shard}",
        f"workers={options.workers}",
        f"threads={options.threads}",
    ]
    run_stage("score", Path(store.root), settings)
    return store, weights, settings


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=DEFAULT_SOURCE, help="folder of images")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--per-shard", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--teacher", default="usfm")
    parser.add_argument("--student", default="tinyusfm")
    parser.add_argument("--workers", type=int, default=cores, help="default as scoring: one a core")
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads = options.workers * options.threads
    torch.set_num_threads(threads)
    paces, bare_paces = [], []
    with tempfile.TemporaryDirectory(prefix="echostill-score-") as folder:
        store, weights, settings = prepare(Path(folder), options)
        loop = BareLoop(store, weights, options.teacher, options.student, options.batch)
        for number in range(options.rounds):
            bare_paces.append(loop.pace(options.images))
            store.scores().delete("")
            paces.append(run_stage("score", Path(store.root), settings))
            print(
                f"round {number}: bare {bare_paces[-1][0]:.3f} images/s, "
                f"score {paces[-1].rows_per_second:.3f} images/s "
                f"(start-up {paces[-1].startup_seconds:.1f} s)",
                flush=True,
            )
    ours = statistics.median(pace.rows_per_second for pace in paces)
    alone = statistics.median(pace for pace, _ in bare_paces)
    processor = statistics.median(pace.processor_seconds for pace in paces)
    processor_alone = statistics.median(seconds for _, seconds in bare_paces)
    result = {
        "machine": describe_machine(),
        "teacher": options.teacher,
        "student": options.student,
        "snapshots": SEEN,
        "images": options.images,
        "workers": options.workers,
        "threads_per_worker": options.threads,
        "bare_threads": threads,
        "images_per_second": round(ours, 3),
        "bare_images_per_second": round(alone, 3),
        "ratio": round(ours / alone, 4),
        "processor_ratio": round(processor_alone / processor, 4),
        "startup_seconds": round(statistics.median(p.startup_seconds for p in paces), 1),
    }
    for name, value in result.items():
        print(f"{name:<26}{value}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
