"""Plans on the connected cluster: its nodes, and waiting for those that are still to come."""

import os
import time
from collections.abc import Callable
from dataclasses import replace

from echostill.platform import runtime
from echostill.platform.cluster.devices import check_gpus
from echostill.platform.cluster.members import watch_nodes
from echostill.platform.cluster.nodes import Node, Nodes, describe
from echostill.platform.cluster.plans import NodesMissingError, WorkerPlan
from echostill.platform.cluster.sight import check_sight
from echostill.platform.config import StageConfig
from echostill.platform.errors import EchostillError
from echostill.platform.progress import console

SAY_EVERY_SECONDS = 60.0

Planner = Callable[[Nodes], WorkerPlan]


def cluster_nodes() -> list[Node]:
    """Return the nodes of the connected cluster."""
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in found]


def local_nodes() -> list[Node]:
    """Return this machine as the one node there is, without starting Ray."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [Node(float(len(os.sched_getaffinity(0))), float(gpus))]


def dry_nodes(config: StageConfig) -> list[Node]:
    """Return the nodes that a dry run plans for: of the cluster at ``address``, else this machine.

    Raises:
        UsageError: The cluster cannot be reached.
    """
    if config.address is None:
        return local_nodes()
    runtime.connect_ray(config.address)
    return cluster_nodes()


def describe_plan(config: StageConfig, make: Planner) -> str:
    """Say for a dry run how a stage would run, or what it would wait for.

    Raises:
        UsageError: The request does not fit the nodes.
    """
    try:
        return make(dry_nodes(config)).describe()
    except NodesMissingError as missing:
        if config.address is None:
            raise
        return f"waits up to {config.wait_for_nodes:g} s for {_wanted(missing)}: {missing}"


def plan_on_cluster(config: StageConfig, make: Planner) -> WorkerPlan:
    """Connect to Ray and plan a stage's workers, waiting for nodes where none can hold them.

    A cluster that scales from zero has no node until something asks for one. A placement group
    asks: the autoscaler starts nodes for it, and it is given back before the workers start.

    Args:
        config: Names the cluster, and how long to wait.
        make: Plans for given nodes.

    Raises:
        UsageError: The request does not fit the nodes, or this machine, which gets no more; or a
            node does not see the store.
        EchostillError: No such node came in time, or torch cannot use the GPUs that Ray gives.
    """
    runtime.connect_ray(config.address)
    watch_nodes()
    until = time.monotonic() + config.wait_for_nodes
    while True:
        try:
            plan = make(cluster_nodes())
            break
        except NodesMissingError as missing:
            if runtime.is_local():
                raise
            left = until - time.monotonic()
            if left <= 0 or not _wait(missing, left, config.wait_for_nodes):
                raise EchostillError(
                    f"no node came in {config.wait_for_nodes:g} s for {_wanted(missing)}: "
                    f"{missing} Start such nodes, or see why the autoscaler starts none (`ray "
                    "status`); wait_for_nodes sets how long to wait. The same command continues."
                ) from None
    if plan.gpus_per_worker:
        check_gpus()
    check_sight(config.store, config.address)
    return plan


def plan_one_run(config: StageConfig, make: Planner) -> WorkerPlan:
    """Plan a training run that shares the cluster with no other; a lone worker is this process.

    One worker without a GPU on this machine alone needs no Ray beside it, which takes seconds and a
    gigabyte. Everything else is planned by :func:`plan_on_cluster`.
    """
    if runtime.is_alone(config.address):
        plan = make(nodes_here())
        if plan.workers == 1 and not plan.gpus_per_worker:
            return replace(plan, here=True)
    return plan_on_cluster(config, make)


def nodes_here() -> list[Node]:
    """Return this machine's node, as a Ray that has been started already counts it."""
    import ray

    return cluster_nodes() if ray.is_initialized() else local_nodes()


def _wait(missing: NodesMissingError, seconds: float, limit: float) -> bool:
    """Ask for what is missing; return whether it came before the seconds were over."""
    from ray.util.placement_group import placement_group, remove_placement_group

    bundle = {"CPU": missing.cpus, **({"GPU": missing.gpus} if missing.gpus else {})}
    group = placement_group([bundle] * missing.workers)
    started, said = time.monotonic(), -SAY_EVERY_SECONDS
    came = False
    try:
        while not came and (passed := time.monotonic() - started) < seconds:
            if passed - said >= SAY_EVERY_SECONDS:
                said = passed
                console.print(
                    f"waiting for {_wanted(missing)}; the cluster has {describe(cluster_nodes())} "
                    f"({passed:.0f} s of {limit:g} s)",
                    markup=False,
                    soft_wrap=True,
                )
            came = group.wait(timeout_seconds=1)  # it counts whole seconds
    finally:
        remove_placement_group(group)
    return came


def _wanted(missing: NodesMissingError) -> str:
    gpu = f" and {missing.gpus:g} GPU" if missing.gpus else ""
    return f"room for {missing.workers} worker(s) of {missing.cpus:g} CPU{gpu}"
