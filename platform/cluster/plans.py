"""How many workers run a stage and what each reserves, given the nodes of a cluster. No Ray here.

Three rules hold for every plan: each worker fits on a node, as many as are planned can be placed at
the same time, and in a pool a CPU or a part of one stays free for what runs beside the workers: Ray
Data waits for ever where an actor pool takes every CPU and its tasks find none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from echostill.platform.cluster.nodes import (
    STEPS,
    Nodes,
    capacity,
    describe,
    keeps_free,
    packed,
    part_of_gpu,
    steps,
    total,
)
from echostill.platform.errors import UsageError

Device = Literal["auto", "cpu", "gpu"]
WorkerCount = int | tuple[int, int]  # or the fewest and the most
READER_SHARE = 0.5  # CPUs left to Ray Data's tasks, whatever the pool's size
OVERSUBSCRIBED = 4  # workers per CPU, at most
PER_GPU = 16  # workers that share a GPU, at most
LEAST = 1 / STEPS  # CPUs of a worker


def check_workers(workers: WorkerCount | None) -> WorkerCount | None:
    """Refuse numbers of workers that are none, as a validator of a configuration's field."""
    fewest, most = workers if isinstance(workers, tuple) else (workers, workers)
    if fewest is not None and most is not None and not 1 <= fewest <= most:
        raise ValueError("must be greater than or equal to 1, or a pair as [fewest, most]")
    return workers


@dataclass(frozen=True)
class WorkerPlan:
    """How many workers run a stage and what each reserves.

    Attributes:
        workers: Workers at the beginning.
        cpus_per_worker: CPUs that each reserves.
        threads: Threads that each computes with.
        gpus_per_worker: GPUs that each reserves.
        decoders: Tasks of one CPU each that decode ahead of the workers.
        fewest: Workers of a pool that shrinks; None where their number is fixed.
        most: Workers of a pool that grows; None where their number is fixed.
        here: The one worker is this process: Ray Train's local mode.
    """

    workers: int
    cpus_per_worker: float
    threads: int
    gpus_per_worker: float = 0.0
    decoders: int = 0
    fewest: int | None = None
    most: int | None = None
    here: bool = False

    def describe(self) -> str:
        """Say the plan in words."""
        gpu = f", {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else ""
        decoders = f"; {self.decoders} decoder(s) x 1 CPU beside them" if self.decoders else ""
        if self.decoders and self.gpus_per_worker:
            decoders += f" ({self.decoders / self.workers / self.gpus_per_worker:.3g} per GPU)"
        count = f"{self.workers} worker(s)"
        if self.fewest is not None and self.most is not None:
            count += f" (from {self.fewest} to {self.most})"
        return (
            f"{count} x {self.cpus_per_worker:g} CPU{gpu}, {self.threads} thread(s) each{decoders}"
        )


class NodesMissingError(UsageError):
    """No node holds what a stage needs; another one could.

    Attributes:
        workers: Workers that want a place at the same time.
        cpus: CPUs of each.
        gpus: GPUs of each.
    """

    def __init__(self, message: str, workers: int, cpus: float, gpus: float = 0.0) -> None:
        """Say what is missing, and what would do."""
        super().__init__(message)
        self.workers, self.cpus, self.gpus = workers, cpus, gpus


def plan_workers(
    requested: WorkerCount | None,
    units: int,
    nodes: Nodes,
    *,
    device: Device = "cpu",
    threads: int = 1,
    decoders: int | None = 0,
) -> WorkerPlan:
    """Plan an actor pool that leaves room for what runs beside it.

    Args:
        requested: Number of workers, fewest and most, or None for as many as fit.
        units: Units of work (shards); more workers than units would idle.
        nodes: Of the cluster.
        device: ``gpu`` gives each worker a GPU, or an equal part of one where they are more than
            the GPUs; never more than one, since a worker computes on one. ``auto`` does so where
            there are any.
        threads: Threads a worker computes with.
        decoders: Tasks that decode ahead of the workers; None for all CPUs that GPU workers leave,
            and for none without GPUs, where workers decode for themselves.

    Raises:
        NodesMissingError: No node has a CPU, or a GPU where one is asked for.
        UsageError: The request does not fit the nodes.
    """
    on_gpu = _on_gpu(nodes, device)
    span = requested if isinstance(requested, tuple) else None
    nodes = sorted(nodes, key=lambda node: -node.gpus)
    if not capacity(nodes, LEAST):
        raise NodesMissingError(
            f"no node has a CPU for a worker: {describe(nodes)}.", span[0] if span else 1, 1.0
        )
    fitting = capacity(nodes, LEAST, 1.0) if on_gpu else _cpu_workers(nodes, threads)
    wanted = fitting if requested is None else requested
    if isinstance(wanted, tuple):
        wanted = min(max(fitting, wanted[0]), wanted[1])
    workers = min(wanted, max(units, 1))
    cpus = max(total(nodes)[0], 1)
    if workers > cpus * OVERSUBSCRIBED:
        raise UsageError(
            f"{workers} workers oversubscribe {cpus:g} CPUs: ask for at most "
            f"{int(cpus * OVERSUBSCRIBED)}."
        )
    gpus = _gpus_each(nodes, workers) if on_gpu else 0.0
    apart = on_gpu if decoders is None else decoders > 0
    share = _share(nodes, workers, gpus, float(threads), apart)
    if share is None and apart:
        raise UsageError(
            f"decoding beside {workers} worker(s) needs a CPU more than there is on "
            f"{describe(nodes)}: set decoders=0."
        )
    if share is None:
        raise UsageError(
            f"{workers} workers find no place on {describe(nodes)}: ask for fewer workers."
        )
    ahead = 0
    if apart:
        free = sorted(packed(nodes, workers, share, gpus), reverse=True)
        free[0] -= READER_SHARE
        left = sum(int(max(cpus, 0.0)) for cpus in free)
        ahead = max(min(left, left if decoders is None else decoders, max(units, 1)), 1)
    if span is None:
        return WorkerPlan(workers, share, threads, gpus, ahead)
    most = max(min(span[1], max(units, 1)), workers)
    return WorkerPlan(workers, share, threads, gpus, ahead, min(span[0], workers), most)


def plan_replicas(
    fewest: int,
    most: int,
    nodes: Nodes,
    *,
    device: Device = "auto",
    threads: int | None = None,
    at_once: int = 1,
) -> WorkerPlan:
    """Plan the workers of a training run: one GPU each, or CPUs shared out node by node.

    Args:
        fewest: Workers that a run starts with.
        most: Workers that it grows to where nodes come.
        nodes: Of the cluster.
        device: ``auto`` takes GPUs where there are any, and refuses where they are too few: a run
            that left them idle would take days.
        threads: Threads a worker computes with; None for the CPUs of a worker.
        at_once: Runs that share the cluster.

    Raises:
        NodesMissingError: No node has a CPU, or the GPUs that are asked for are not there.
        UsageError: The request does not fit the nodes.
    """
    first, last = fewest * at_once, most * at_once
    if _on_gpu(nodes, device):
        return _plan_on_gpus(fewest, most, nodes, device, threads, at_once)
    if not capacity(nodes, LEAST):
        raise NodesMissingError(f"no node has a CPU: {describe(nodes)}.", first, 1.0)
    fitting = threads_each(nodes, last)
    own = threads or fitting
    share = float(min(own, fitting))
    if capacity(nodes, share) < first:
        # An elastic run may start before the nodes that it hopes for: its fewest workers must fit.
        found = next((part for part in _shares(1.0) if capacity(nodes, part) >= first), None)
        if found is None:
            raise UsageError(
                f"{first} workers find no place on {describe(nodes)}: ask for fewer workers."
            )
        share = found
    return WorkerPlan(most, share, own)


def threads_each(nodes: Nodes, workers: int) -> int:
    """The most whole CPUs that each of so many workers can have; 1 where they are too many."""
    largest = max(int(node.cpus) for node in nodes)
    fits = (cpus for cpus in range(largest, 1, -1) if capacity(nodes, cpus) >= workers)
    return next(fits, 1)


def _plan_on_gpus(
    fewest: int, most: int, nodes: Nodes, device: Device, threads: int | None, at_once: int
) -> WorkerPlan:
    first, last = fewest * at_once, most * at_once
    there = capacity(nodes, LEAST, 1.0)
    if there < first:
        runs = f" ({at_once} runs at once)" if at_once > 1 else ""
        text = (
            f"{first} training workers{runs} need a GPU each, and there are {there} on "
            f"{describe(nodes)}: use training.workers={max(there // at_once, 1)}"
            f"{', at_once=1' if at_once > 1 else ''}, or compute_on=cpu."
        )
        if device == "gpu":  # they are expected
            raise NodesMissingError(text, first, 1.0, 1.0)
        raise UsageError(text)
    wanted = min(last, there)
    share = next(part for part in _shares(1.0) if capacity(nodes, part, 1.0) >= wanted)
    own = [
        max(int(node.cpus // min(node.holds(share, 1.0), last)), 1)
        for node in nodes
        if node.holds(share, 1.0)
    ]
    return WorkerPlan(most, share, threads or min(own), 1.0)


def gpus_for(runs: int, most: int, nodes: Nodes, device: Device = "auto") -> int:
    """How many GPUs each of so many trainings at once can have for itself.

    Args:
        runs: Trainings that share the cluster.
        most: Workers that a training has work for.
        nodes: Of the cluster.
        device: As for :func:`plan_replicas`.

    Returns:
        At least 1, as on CPUs, where a worker has threads instead of companions.

    Raises:
        NodesMissingError: GPUs are asked for, and there is none.
    """
    places = capacity(nodes, LEAST, 1.0) if _on_gpu(nodes, device) else 1
    return max(min(places // runs, most), 1)


def runs_at_once(
    runs: int, workers: int, nodes: Nodes, *, device: Device = "auto", threads: int | None = None
) -> int:
    """How many runs to train side by side: small models gain more from that than from threads.

    Args:
        runs: Runs there are.
        workers: Workers of a run.
        nodes: Of the cluster.
        device: As for :func:`plan_replicas`.
        threads: Threads of a worker, where they are fixed.
    """
    try:
        on_gpu = _on_gpu(nodes, device)
    except NodesMissingError:
        return 1  # of a cluster whose nodes are still to come
    places = capacity(nodes, LEAST, 1.0) if on_gpu else capacity(nodes, float(threads or 1))
    return max(min(runs, places // workers), 1)


def _cpu_workers(nodes: Nodes, threads: int) -> int:
    """One worker for so many threads, and at least one on each node that has a whole CPU."""
    return max(sum(max(node.holds(threads), int(node.cpus >= 1)) for node in nodes), 1)


def _on_gpu(nodes: Nodes, device: Device) -> bool:
    there = capacity(nodes, LEAST, 1.0) > 0
    if device == "gpu" and not there:
        raise NodesMissingError(
            f"compute_on is gpu, and there is none: {describe(nodes)}. Add one, or use "
            "compute_on=cpu.",
            1,
            1.0,
            1.0,
        )
    return there and device != "cpu"


def _gpus_each(nodes: Nodes, workers: int) -> float:
    for sharing in range(1, PER_GPU + 1):
        gpus = 1.0 if sharing == 1 else part_of_gpu(sharing)
        if capacity(nodes, LEAST, gpus) >= workers:
            return gpus
    raise UsageError(
        f"{workers} workers are more than {PER_GPU} per GPU on {describe(nodes)}: ask for at most "
        f"{capacity(nodes, LEAST, part_of_gpu(PER_GPU))}, or use compute_on=cpu."
    )


def _share(nodes: Nodes, workers: int, gpus: float, most: float, apart: bool) -> float | None:
    """The most CPUs that each worker of a pool can have; None where none are possible.

    A task that decodes takes a whole CPU of one node.
    """
    largest = max(node.cpus for node in nodes)
    rooms = (1 + READER_SHARE, 1.0) if apart else (min(READER_SHARE, largest / 2), 0.0)
    for room in rooms:
        for share in _shares(most):
            fits = capacity(nodes, share, gpus) >= workers
            if fits and (not room or keeps_free(nodes, workers, share, gpus, room)):
                return share
    return None


def _shares(most: float) -> Iterator[float]:
    return (step / STEPS for step in range(steps(most), 0, -1))
