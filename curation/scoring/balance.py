"""How many CPU cores keep one GPU busy: the ratio of the scoring rate to the decoding rate.

One GPU scores images several times as fast as one core decodes them. With too few cores per GPU the
GPU waits. The plan shows this before the run, and the seconds in the event log show it for a run.
"""

import time
from dataclasses import dataclass

from echostill.curation.scoring.decoding import PartDecoder
from echostill.platform.tables.table import Table

SAMPLE = 32  # images that are decoded to measure the rate
GPU_TERAFLOPS = 20.0  # assumed sustained rate of a GPU in 32-bit arithmetic


@dataclass(frozen=True)
class Balance:
    """Images per second of one core that decodes and of one GPU that scores, and their sources."""

    decode_rate: float
    decode_source: str
    gpu_rate: float
    gpu_source: str

    @property
    def cores_per_gpu(self) -> float:
        """Cores that decode as fast as one GPU scores."""
        return self.gpu_rate / self.decode_rate

    def describe(self, cpus: float, gpus: float) -> str:
        """Describe the ratio, and whether these CPUs and GPUs have it."""
        message = (
            f"{self.cores_per_gpu:.1f} cores per GPU: a core decodes {self.decode_rate:.0f} "
            f"images/s ({self.decode_source}), a GPU scores {self.gpu_rate:.0f} "
            f"({self.gpu_source})"
        )
        if not gpus:
            return f"{message}; no GPU here, each worker decodes its own images"
        fed = min(cpus / (gpus * self.cores_per_gpu), 1.0)
        return f"{message}; {cpus / gpus:.1f} here, which keep the GPUs {fed:.0%} busy"


def plan_balance(
    decoder: PartDecoder,
    pool: Table,
    gflops_per_image: float,
    *,
    decode_rate: float | None = None,
    gpu_rate: float | None = None,
) -> Balance:
    """Return both rates: as stated, or measured on a few images and estimated from FLOPs.

    Args:
        decoder: Decodes the pool.
        pool: The pool.
        gflops_per_image: 10^9 operations to score one image.
        decode_rate: Images per second of one core, if known.
        gpu_rate: Images per second of one GPU, if known.
    """
    stated = "stated"
    source, gpu_source = stated, stated
    if decode_rate is None:
        decode_rate, source = _measure(decoder, pool)
    if gpu_rate is None:
        gpu_rate = GPU_TERAFLOPS * 1e3 / max(gflops_per_image, 1e-9)
        gpu_source = f"estimated: {gflops_per_image:.3g} GFLOPs at {GPU_TERAFLOPS:.0f} TFLOP/s"
    return Balance(decode_rate, source, gpu_rate, gpu_source)


def _measure(decoder: PartDecoder, pool: Table) -> tuple[float, str]:
    """Decode a few images of the first part that has any; on this machine, in this thread."""
    part = next((part for part in pool.manifest["parts"] if part["rows"]), None)
    if part is None:
        return 1.0, "unknown: the pool is empty"
    rows = min(part["rows"], SAMPLE)
    next(decoder.batches([part["file"], 0, 1]))  # warm-up: imports and caches
    started = time.perf_counter()
    for _ in decoder.batches([part["file"], 0, rows]):
        pass
    return rows / max(time.perf_counter() - started, 1e-9), f"measured on {rows} images here"
