"""Hours, disk, memory and the cost of a lost node, for a pool and a cluster that do not exist yet.

Nothing is read or started. Every rate has a source: measured, or an assumption that says so; each
can be replaced by a rate of your own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from echostill.curation.ingestion.stage import IngestConfig
from echostill.curation.scoring.balance import GPU_TERAFLOPS
from echostill.curation.scoring.stage import ScoreConfig
from echostill.curation.selection.clustering import training_rows
from echostill.curation.selection.settings import resolve_budget
from echostill.curation.selection.stage import BYTES_PER_IMAGE, SelectConfig
from echostill.distill.settings import DistillConfig
from echostill.platform.config import apply_overrides, read_document, resolve
from echostill.platform.errors import UsageError, nearest
from echostill.platform.models import Encoder, create_encoder
from echostill.platform.models.complexity import gflops
from echostill.platform.tables.store import describe_bytes
from echostill.platform.training.settings import TrainingSettings

MACHINE = "two cores of an AMD EPYC (benchmarks/README.md)"
BACKWARD = 2.0  # operations of a backward pass, in those of the forward pass


@dataclass(frozen=True)
class Rate:
    """A number that the plan stands on, and where it is from."""

    value: float
    unit: str
    source: str


RATES = {
    "ingest": Rate(65.0, "images/s and CPU", f"measured: JPEG of 800 pixels on {MACHINE}"),
    "decode": Rate(
        65.0, "images/s and CPU", "assumed: as ingest, which decodes larger images and encodes too"
    ),
    "cpu": Rate(85.0, "GFLOP/s and CPU", f"measured: scoring with usfm and tinyusfm on {MACHINE}"),
    "gpu": Rate(
        GPU_TERAFLOPS * 1e3, "GFLOP/s and GPU", "assumed: not measured, and GPUs differ greatly"
    ),
    "select": Rate(
        26_000.0, "images/s", f"measured: 3 million rows against 300,000, of 768, on {MACHINE}"
    ),
    "clustering": Rate(14.0, "s", f"measured: what does not grow with the pool, on {MACHINE}"),
    "pool": Rate(20e3, "bytes and image", "measured: the quickstart's pool"),
    "coreset": Rate(54.0, "bytes and image", "measured: the quickstart's coreset"),
    "restart": Rate(60.0, "s", "assumed: workers that start again and load their models"),
}


@dataclass(frozen=True)
class Cluster:
    """What the stages would run on."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class StagePlan:
    """What a stage would need."""

    stage: str
    seconds: float
    disk: float
    memory: float
    lost: float  # seconds of work that are done again when a node is lost
    why: str

    def cells(self) -> list[str]:
        """Return the row of the table."""
        return [
            self.stage,
            duration(self.seconds),
            describe_bytes(self.disk),
            describe_bytes(self.memory) if self.memory else "-",
            duration(self.lost),
            self.why,
        ]


@dataclass(frozen=True)
class Settings:
    """The configuration of the stages that are planned."""

    score: ScoreConfig
    select: SelectConfig
    distill: DistillConfig


def plan_pool(
    images: float,
    gpus: int,
    cpus: int | None,
    rates: Sequence[str] = (),
    config_file: str | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """Plan in words, from what is typed.

    Args:
        images: Images of the pool.
        gpus: GPUs of the cluster.
        cpus: CPUs of the cluster; None for as many as keep the GPUs busy.
        rates: ``name=value`` texts.
        config_file: YAML configuration of the stages.
        overrides: ``section.key=value`` texts.

    Raises:
        UsageError: A number is missing or out of range, or a key is unknown.
    """
    if not (math.isfinite(images) and images >= 1):
        raise UsageError(f"--images {images:g} must be at least 1.")
    changes = {}
    for text in rates:
        name, _, number = text.partition("=")
        try:
            changes[name] = float(number)
        except ValueError:
            raise UsageError(f"--rate {text} must be NAME=VALUE with a number.") from None
    known = rates_with(changes)
    document = apply_overrides(read_document(config_file), overrides, None)
    settings = Settings(
        resolve(ScoreConfig, "score", document),
        resolve(SelectConfig, "select", document),
        resolve(DistillConfig, "distill", document),
    )
    cluster = Cluster(cpus or cpus_that_feed(settings, gpus, known), gpus)
    plans = plan_capacity(int(images), settings, cluster, known)
    return describe_capacity(int(images), cluster, plans, known)


def rates_with(changes: Mapping[str, float]) -> dict[str, Rate]:
    """Return the rates with some replaced.

    Raises:
        UsageError: There is no such rate, or it is not above 0.
    """
    rates = dict(RATES)
    for name, value in changes.items():
        if name not in rates:
            raise UsageError(
                f"no rate '{name}'.{nearest(name, rates)} There are {', '.join(rates)}."
            )
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"rate '{name}' must be above 0, got {value:g}.")
        rates[name] = replace(rates[name], value=value, source="yours")
    return rates


def plan_capacity(
    images: int, settings: Settings, cluster: Cluster, rates: Mapping[str, Rate]
) -> list[StagePlan]:
    """Plan the stages that grow with the pool, and the training on the coreset.

    Args:
        images: Images of the pool.
        settings: Models, steps, budget.
        cluster: What the stages run on.
        rates: Rates by name.
    """
    value = {name: rate.value for name, rate in rates.items()}
    score, select, distill = settings.score, settings.select, settings.distill
    teacher, teacher_cost = _encoder(score.teacher.model, score.teacher.image_size)
    student, student_cost = _encoder(score.student, score.student_image_size)
    speed = cluster.gpus * value["gpu"] if cluster.gpus else cluster.cpus * value["cpu"]
    units = cluster.gpus or cluster.cpus
    step = 1 + BACKWARD

    ingest_rate = cluster.cpus * value["ingest"]
    per_shard = int(IngestConfig.model_fields["files_per_shard"].default)
    ingest = StagePlan(
        "ingest",
        images / ingest_rate,
        images * value["pool"],
        0,
        min(per_shard, images) / value["ingest"],
        f"{ingest_rate:.0f} images/s; one shard of each worker",
    )

    sample = min(score.proxy.sample, images)
    proxy_cost = 2 * step * student_cost  # two views, one of each domain
    proxy = _training("proxy", score.proxy.paced, proxy_cost, cluster, speed, value["restart"])
    proxy = replace(proxy, disk=sample * student.image_size**2)

    passes = score.mask_draws * len(score.proxy.snapshot_steps())
    views = 2 if score.gradient_loss == "separated" else 1
    cost = teacher_cost + passes * views * student_cost
    computed, decoded = speed / cost, cluster.cpus * value["decode"]
    rate = min(computed, decoded) if cluster.gpus else computed
    row = teacher.feature_dim * 2 + len(score.proxy.snapshot_steps()) * 4 + 48
    bound = ", as fast as the CPUs decode" if rate < computed else ""
    scores = StagePlan(
        "score",
        images / rate,
        images * row,
        0,
        min(score.rows_per_shard, images) / (rate / units) + value["restart"],
        f"{rate:.0f} images/s{bound}; one shard of each worker",
    )

    budget = resolve_budget(select.budget, images)
    seconds = images / value["select"] + value["clustering"]
    memory = training_rows(images, select) * teacher.feature_dim * 4 + images * BYTES_PER_IMAGE
    selection = StagePlan(
        "select", seconds, images * value["coreset"], memory, seconds, "one machine; starts again"
    )

    distil_cost = 2 * (teacher_cost + step * student_cost)
    distil = _training("distill", distill.training, distil_cost, cluster, speed, value["restart"])
    distil = replace(distil, disk=budget * student.image_size**2)
    return [ingest, proxy, scores, selection, distil]


@cache
def _encoder(model: str, image_size: int | None) -> tuple[Encoder, float]:
    """Return a model without weights, and its operations for one image in 10^9."""
    with torch.device("meta"):
        encoder = create_encoder(model, image_size=image_size)
    return encoder, gflops(encoder)


def _training(
    stage: str,
    settings: TrainingSettings,
    cost: float,
    cluster: Cluster,
    speed: float,
    restart: float,
) -> StagePlan:
    units = cluster.gpus or cluster.cpus
    one_each = settings.workers is None and cluster.gpus > 0
    workers = min(settings.batch_size if one_each else settings.worker_range[1], units)
    rate = speed / units * workers / cost
    seconds = settings.steps * settings.batch_size / rate
    lost = seconds / min(settings.checkpoints, settings.steps) + restart
    why = f"{rate:.0f} images/s by {workers} worker(s); back to the last checkpoint"
    return StagePlan(stage, seconds, 0, 0, lost, why)


def cpus_that_feed(settings: Settings, gpus: int, rates: Mapping[str, Rate]) -> int:
    """CPUs that decode as fast as so many GPUs score; without GPUs two, as measured."""
    if not gpus:
        return 2
    many = plan_capacity(1_000_000, settings, Cluster(10**9, gpus), rates)
    score = next(plan for plan in many if plan.stage == "score")
    return max(math.ceil(1_000_000 / score.seconds / rates["decode"].value), gpus)


def describe_capacity(
    images: int, cluster: Cluster, plans: list[StagePlan], rates: Mapping[str, Rate]
) -> str:
    """Say the plan in words: a table, and the rates it stands on."""
    head = ["stage", "time", "disk", "memory", "lost node", "because"]
    rows = [head, *(plan.cells() for plan in plans)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    total = sum(plan.seconds for plan in plans)
    disk = sum(plan.disk for plan in plans)
    sources = [
        f"  {name:<10} {rate.value:g} {rate.unit} ({rate.source})" for name, rate in rates.items()
    ]
    return "\n".join(
        [
            f"{images:,} images on {cluster.gpus} GPU(s) and {cluster.cpus} CPU(s): "
            f"{duration(total)}, {describe_bytes(disk)}",
            *lines,
            "Disk is the pool, one copy of the staged training images, the scores and the coreset.",
            "Training counts a forward and a backward pass of the student on two views, and one of "
            "the teacher.",
            "Rates; replace one with --rate NAME=VALUE:",
            *sources,
        ]
    )


def duration(seconds: float) -> str:
    """Say a time with its unit: seconds, minutes, hours or days."""
    for unit, length, limit in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 72)):
        if seconds < limit * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"
