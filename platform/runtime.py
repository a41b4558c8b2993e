"""Connecting to Ray and planning what runs where.

Ray Data waits forever when an actor pool takes every CPU and no reader can start. So workers are
planned before a stage begins: a share of the CPUs is always left for readers and the driver.
"""

import logging
import os
from dataclasses import dataclass

from echostill.platform.errors import UsageError

READER_SHARE = 0.5  # CPUs left to Ray Data's readers, whatever the pool's size


@dataclass(frozen=True)
class WorkerPlan:
    """How many workers run a stage and what each reserves."""

    workers: int
    cpus_per_worker: float
    threads: int
    gpus_per_worker: float = 0.0

    def describe(self) -> str:
        """Say the plan in words."""
        gpu = f", {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else ""
        return (
            f"{self.workers} worker(s) x {self.cpus_per_worker:g} CPU{gpu}, "
            f"{self.threads} thread(s) each"
        )


def connect(address: str | None = None) -> None:
    """Connect to the given Ray, the one in RAY_ADDRESS, or start a local one; idempotent.

    Medical data never phones home: usage statistics are off before Ray is imported.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # Each report of a worker waits for the controller's next look; its two seconds are long here.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    import ray

    if ray.is_initialized():
        return
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, object] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if target == "local":
        options |= {"include_dashboard": False, "object_store_memory": _object_store_bytes()}
    try:
        ray.init(address=target, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"cannot reach Ray at '{target}': {error}. Start one (`ray start --head`), correct "
            "--address or RAY_ADDRESS, or leave both out for a local Ray."
        ) from None
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def disconnect() -> None:
    """Leave Ray; a local one ends with its workers."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def _object_store_bytes() -> int:
    """A tenth of memory, between 256 MB and 8 GB: tables pass by name, not through Ray."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(max(total // 10, 256 * 2**20), 8 * 2**30))


def cluster_resources() -> tuple[float, float]:
    """Return the CPUs and GPUs of the connected cluster."""
    import ray

    resources = ray.cluster_resources()
    return float(resources.get("CPU", 0)), float(resources.get("GPU", 0))


def local_resources() -> tuple[float, float]:
    """Return the CPUs this process may use, for plans made without starting Ray."""
    return float(len(os.sched_getaffinity(0))), 0.0


def process_usage() -> dict[str, float]:
    """Return what this process has used: CPU seconds, and the peak of memory in megabytes."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    usage = {
        "process_cpu_seconds": used.ru_utime + used.ru_stime,
        "process_peak_memory_megabytes": used.ru_maxrss / 1024,
    }
    import torch

    if torch.cuda.is_available():
        usage["gpu_peak_memory_megabytes"] = torch.cuda.max_memory_allocated() / 2**20
    return usage


def plan_workers(
    requested: int | None, units: int, cpus: float, gpus: float = 0.0, threads: int = 1
) -> WorkerPlan:
    """Plan an actor pool that leaves the readers room.

    Args:
        requested: Number of workers, or None for as many as fit.
        units: Units of work (shards); more workers than units would idle.
        cpus: CPUs of the cluster.
        gpus: GPUs to spread over the workers; with any, one worker per GPU by default.
        threads: Threads a worker computes with.

    Raises:
        UsageError: The request does not fit the cluster.
    """
    fitting = max(int(gpus) if gpus else int(cpus // threads), 1)
    workers = min(requested or fitting, max(units, 1))
    if workers > max(cpus, 1) * 4:
        raise UsageError(
            f"{workers} workers on {cpus:g} CPUs would only wait for each other: ask for at most "
            f"{int(max(cpus, 1) * 4)}."
        )
    spare = max(cpus - READER_SHARE, 0.25)
    share = min(float(threads), int(spare / workers * 100) / 100)
    return WorkerPlan(workers, max(share, 0.01), threads, gpus / workers if gpus else 0.0)
