"""The precision of a stage's result: settled once, then part of what the result is.

A result has one precision. ``auto`` is what it was begun with, wherever it is continued; for a new
one it follows the workers. Another precision makes another result. A fingerprint names it unless it
is float32, of which nothing was said before there were others.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from echostill.platform import runtime
from echostill.platform.cluster.devices import gpus_have_bfloat16
from echostill.platform.cluster.nodes import total
from echostill.platform.cluster.plans import NodesMissingError, WorkerPlan
from echostill.platform.cluster.waiting import Planner, dry_nodes, nodes_here, plan_on_cluster
from echostill.platform.computing.precision import Precision, own_precision
from echostill.platform.config import ComputeConfig, ModelsConfig, execution
from echostill.platform.progress import console
from echostill.platform.tables.fingerprint import FINGERPRINT, Fingerprint, claimed
from echostill.platform.tables.storage import Storage

KEY = "precision"


class PrecisionConfig(ModelsConfig):
    """What stages share whose result depends on the precision of models."""

    precision: Precision = execution(
        "auto",
        "Of matrix products. 'auto' is what the result was begun with; for a new one bfloat16 on "
        "GPUs (float16 on those without it) and float32 on CPUs. A result has one precision.",
        rounds=True,
    )


Settings = TypeVar("Settings", bound=PrecisionConfig)


def settle(
    config: Settings,
    folder: Storage,
    make: Planner,
    *,
    overwrite: bool = False,
    connect: bool = True,
) -> Settings:
    """Return a stage's configuration with its precision settled; see :func:`settled`."""
    found = settled(config.precision, folder, config, make, overwrite=overwrite, connect=connect)
    return config.model_copy(update={"precision": found})


def settled(
    precision: Precision,
    folder: Storage,
    config: ComputeConfig,
    make: Planner,
    *,
    overwrite: bool = False,
    connect: bool = True,
    key: str = KEY,
) -> Precision:
    """Settle the precision of a result.

    Args:
        precision: What was asked for.
        folder: Of the result, claimed or not.
        config: Names the cluster, and where models compute.
        make: Plans the workers.
        overwrite: Whether what was begun may be replaced.
        connect: Whether to connect to Ray where that tells; else as a dry run does.
        key: Of the fingerprint's configuration.

    Returns:
        The precision asked for; of ``auto``, what was begun or what the workers have.

    Raises:
        UsageError: The workers fit no node.
    """
    if precision != "auto":
        return precision
    if not overwrite and folder.exists(FINGERPRINT):
        return precision_of(claimed(folder).configuration, key)
    return own_precision(_on_gpus(config, make, connect), gpus_have_bfloat16())


def precision_of(configuration: Mapping[str, Any], key: str = KEY) -> Precision:
    """Return the precision that a fingerprint's configuration names."""
    named: Precision = configuration.get(key, "float32")
    return named


def with_precision(wanted: Fingerprint, precision: Precision, key: str = KEY) -> Fingerprint:
    """Name a settled precision in what a result depends on."""
    if precision == "float32":
        return wanted
    return replace(wanted, configuration={**wanted.configuration, key: precision})


def say_if_slow(stage: str, precision: Precision, plan: WorkerPlan) -> None:
    """Say so where what was begun on GPUs is continued without them."""
    if precision != "float32" and not plan.gpus_per_worker:
        console.print(
            f"{stage}: computes in {precision} on CPUs, as asked for or as this result was begun; "
            "most are slow in it. precision=float32 and --overwrite begin anew.",
            markup=False,
            soft_wrap=True,
        )


def _on_gpus(config: ComputeConfig, make: Planner, connect: bool) -> bool:
    """Return whether a stage's workers would have GPUs; asks Ray only where it may have some."""
    if config.compute_on == "cpu":
        return False
    if runtime.is_alone(config.address) and not total(nodes_here())[1]:
        return False
    if connect:
        return bool(plan_on_cluster(config, make).gpus_per_worker)
    try:
        return bool(make(dry_nodes(config)).gpus_per_worker)
    except NodesMissingError as missing:  # of a cluster whose nodes are still to come
        return bool(missing.gpus)
