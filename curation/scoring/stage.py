"""The score stage: a briefly trained proxy, then teacher features and gradient norms in one pass.

The proxy is the student itself, trained with the masked image modelling objective on a sample of
the pool; its weights are stored at several steps. Then every image is decoded once to compute the
teacher's feature and, for each stored proxy, the norm of the last layer's gradient.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from pydantic import Field, field_validator

from echostill.curation.scoring.balance import plan_balance
from echostill.curation.scoring.decoding import PartDecoder, shards
from echostill.curation.scoring.gradient import GradientLoss
from echostill.curation.scoring.growth import PROXY, begun_with, describe_growth, history_of
from echostill.curation.scoring.worker import ProxySettings, ScoreWorker
from echostill.platform import stages
from echostill.platform.cluster.nodes import Nodes, total
from echostill.platform.cluster.plans import (
    WorkerCount,
    WorkerPlan,
    check_workers,
    plan_workers,
)
from echostill.platform.cluster.waiting import describe_plan, dry_nodes, plan_on_cluster
from echostill.platform.computing.settling import (
    PrecisionConfig,
    say_if_slow,
    settle,
    with_precision,
)
from echostill.platform.config import execution
from echostill.platform.masking.mim import MaskedImageModel
from echostill.platform.masking.mim_training import MaskedImageJob, snapshot_name
from echostill.platform.models import create_encoder
from echostill.platform.models.complexity import gflops
from echostill.platform.models.weights import Weights, find_teacher
from echostill.platform.seeding import stream
from echostill.platform.shards.log import Accounting
from echostill.platform.shards.stage import ShardedStage
from echostill.platform.stage import Plan, Stage, StageResult, logged
from echostill.platform.tables.fingerprint import Claim, fingerprint
from echostill.platform.tables.schemas import scores_schema
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store, describe_bytes, save_configuration
from echostill.platform.tables.table import MANIFEST, Table
from echostill.platform.tables.versions import continued
from echostill.platform.training.ray import plan as plan_training
from echostill.platform.training.run import RunResult, is_finished, train_run


class ScoreConfig(PrecisionConfig):
    """Scoring of the pool."""

    proxy: ProxySettings = ProxySettings()
    gradient_loss: GradientLoss = Field("mse", description="Loss whose gradient is measured.")
    mask_draws: int = Field(2, ge=1, description="Mask draws the gradient norm is averaged over.")
    batch_size: int = Field(64, ge=1, description="Images per forward pass.")
    rows_per_shard: int = Field(
        2048, ge=1, description="Images that one part of the scores holds, at most."
    )
    workers: WorkerCount | None = execution(
        None,
        "Scoring workers, or [fewest, most] of a pool that follows the nodes; default one per GPU, "
        "without GPUs as many as fit.",
    )
    threads: int = execution(1, "Threads per CPU worker.", ge=1)
    decoders: int | None = execution(
        None,
        "Tasks that decode ahead of GPU workers; default all CPUs left free.",
        ge=0,
    )
    decode_rate: float | None = execution(
        None, "Images a CPU core decodes per second, for the plan; default measured.", gt=0
    )
    gpu_rate: float | None = execution(
        None, "Images a GPU scores per second, for the plan; default estimated.", gt=0
    )
    max_error_rate: float = execution(0.05, "Largest share of quarantined rows.", ge=0, le=1)

    _workers_fit = field_validator("workers")(check_workers)


@dataclass(frozen=True)
class ScoreSetup:
    """The stage with its shards and its worker, before any scoring."""

    stage: ShardedStage
    shards: list[list[str | int]]
    worker: ScoreWorker
    proxy: RunResult
    growth: str = ""  # what was scored of earlier versions of the pool, in words

    def result(
        self, counts: Accounting, beginning: str, *, already_done: bool = False
    ) -> StageResult:
        """Say what the scores hold now, after the sentence's beginning."""
        return StageResult(
            "score",
            ("scores",),
            self.stage.table.root,
            {**counts.counts},
            beginning + counts.describe(),
            already_done,
        )


@logged(stages.SCORE)
def score(config: ScoreConfig, *, overwrite: bool = False) -> StageResult:
    """Train the proxy and fill the scores table.

    Returns:
        Counts of rows in, rows out and quarantined rows.
    """
    ready = _prepare(config, overwrite)
    if ready.stage.is_finished():
        return ready.result(ready.stage.accounting(), "already done: ", already_done=True)
    plan = _connected_plan(config, len(ready.shards))
    say_if_slow("score", ready.worker.precision, plan)
    done = ready.stage.run(
        ready.shards,
        ready.worker.loaded,
        plan,
        decode=ready.worker.decoded_ahead(plan),
        progress=config.progress,
    )
    return ready.result(
        done, f"{ready.growth}; " if ready.growth else f"proxy {ready.proxy.losses()}; "
    )


@logged(stages.SCORE, "retry")
def retry_score(config: ScoreConfig) -> StageResult:
    """Score the quarantined images again.

    Rows that now succeed are inserted into the scores where they would have been.

    Returns:
        Counts as of :func:`score`; the sentence lists what was made from the previous scores.
    """
    store = Store(config.store)
    ready = _prepare(config, overwrite=False)
    before = store.open_scores().digest if ready.stage.is_finished() else None
    done = ready.stage.retry(
        ready.shards,
        ready.worker.loaded,
        _connected_plan(config, len(ready.shards)),
        progress=config.progress,
    )
    sentence = done.describe(store.made_from(before) if before and done.changed else [])
    return done.result("score", "scores", store.scores().root, sentence)


def _prepare(config: ScoreConfig, overwrite: bool) -> ScoreSetup:
    store = Store(config.store)
    pool = store.open_pool()
    teacher = find_teacher(config)
    encoder, student = teacher.outline(), _proxy_model(config)
    proxy = _train_proxy(config, store, pool, overwrite)
    steps = config.proxy.snapshot_steps()
    digest = _proxy_digest(proxy.storage, steps)
    count = len(shards(pool, config.rows_per_shard))
    make = partial(_plan, config, count)
    config = settle(config, store.scores(), make, overwrite=overwrite)
    claim = _claim(config, store, pool, teacher, digest, overwrite)
    claim.take(overwrite)
    wanted = claim.wanted
    worker = ScoreWorker(
        decoder=PartDecoder(
            store.pool(),
            tuple(sorted({encoder.image_size, student.encoder.image_size})),
            config.batch_size,
        ),
        teacher=teacher,
        student=config.student,
        student_image_size=config.student_image_size,
        proxy=config.proxy,
        snapshots=proxy.storage,
        gradient_loss=config.gradient_loss,
        mask_draws=config.mask_draws,
        seed=config.seed,
        precision=config.precision,
    )
    stage = ShardedStage(
        name="score",
        table=store.scores(),
        quarantine=store.quarantine("score"),
        schema=scores_schema(encoder.feature_dim, len(steps)),
        fingerprint=wanted,
        max_error_rate=config.max_error_rate,
        events=store.events(),
        history=history_of(pool, wanted, config.rows_per_shard),
    )
    if not store.scores().exists(MANIFEST):
        save_configuration(store.scores(), config)
    growth = describe_growth(store, pool)
    return ScoreSetup(stage, shards(pool, config.rows_per_shard), worker, proxy, growth)


def _connected_plan(config: ScoreConfig, count: int) -> WorkerPlan:
    return plan_on_cluster(config, partial(_plan, config, count))


def _plan(config: ScoreConfig, count: int, nodes: Nodes) -> WorkerPlan:
    return plan_workers(
        config.workers,
        count,
        nodes,
        device=config.compute_on,
        threads=config.threads,
        decoders=config.decoders,
    )


def _claim(
    config: ScoreConfig,
    store: Store,
    pool: Table,
    teacher: Weights,
    proxy_digest: str,
    overwrite: bool,
) -> Claim:
    """Return the claim on the scores' folder; scores of an earlier version of the pool go on."""
    wanted = fingerprint(
        config,
        weights={**teacher.identity("teacher"), "proxy": proxy_digest},
        inputs={"pool": pool.digest},
        without=("teacher",),
    )
    wanted = with_precision(wanted, config.precision)
    if not overwrite:
        wanted = continued(store.scores(), wanted, "pool", pool)
    about = {
        "inputs.pool": f"{begun_with(wanted, pool).rows} images",
        "weights.teacher": teacher.path.rpartition("/")[2],
    }
    return Claim(store.scores(), wanted, "score", "scores", about=about)


def _proxy_claim(config: ScoreConfig, store: Store, pool: Table, overwrite: bool) -> Claim:
    """Return the claim on the proxy's folder; the proxy of an earlier version goes on."""
    wanted = fingerprint(
        config,
        inputs={"pool": pool.digest},
        without=("teacher", "gradient_loss", "mask_draws", "batch_size", "rows_per_shard"),
    )
    if not overwrite:
        wanted = continued(store.run(PROXY), wanted, "pool", pool)
    about = {"inputs.pool": f"{begun_with(wanted, pool).rows} images"}
    return Claim(store.run(PROXY), wanted, "proxy", "a proxy", about=about)


def _check_claims(
    config: ScoreConfig, store: Store, pool: Table, teacher: Weights, overwrite: bool
) -> bool:
    """Return whether scores would be replaced; raises what :func:`score` would raise."""
    if _proxy_claim(config, store, pool, overwrite).check(overwrite):
        return True
    if not is_finished(store.run(PROXY)):
        return False
    digest = _proxy_digest(store.run(PROXY), config.proxy.snapshot_steps())
    return _claim(config, store, pool, teacher, digest, overwrite).check(overwrite)


def plan_score(config: ScoreConfig, *, overwrite: bool = False) -> Plan:
    """Describe what :func:`score` would do."""
    store = Store(config.store)
    pool = store.open_pool()
    teacher = find_teacher(config)
    count = len(shards(pool, config.rows_per_shard))
    make = partial(_plan, config, count)
    config = settle(config, store.scores(), make, overwrite=overwrite, connect=False)
    replaces = _check_claims(config, store, pool, teacher, overwrite)
    training = config.proxy.paced
    encoder, student = teacher.outline(), _proxy_model(config).encoder
    per_row = encoder.feature_dim * 2 + len(config.proxy.snapshot_steps()) * 4 + 48
    out = Plan("score")
    out.add("pool", f"{pool.rows} images in {count} shards, {pool.storage.root}")
    if growth := describe_growth(store, pool):
        out.add("growth", growth)
    out.add("teacher", teacher.describe())
    out.add("proxy", f"{config.student}, {training.describe(min(config.proxy.sample, pool.rows))}")
    out.add("proxy done", "yes" if is_finished(store.run(PROXY)) else "no")
    out.add(
        "proxy workers",
        describe_plan(config, lambda nodes: plan_training(training, nodes, config.compute_on)),
    )
    out.add("scoring", describe_plan(config, partial(_plan, config, count)))
    out.add("precision", config.precision)
    forwards = config.mask_draws * len(config.proxy.snapshot_steps())
    views = 2 if config.gradient_loss == "separated" else 1
    sizes = tuple(sorted({encoder.image_size, student.image_size}))
    balance = plan_balance(
        PartDecoder(store.pool(), sizes, config.batch_size),
        pool,
        gflops(encoder) + forwards * views * gflops(student),
        decode_rate=config.decode_rate,
        gpu_rate=config.gpu_rate,
    )
    out.add("CPU:GPU", balance.describe(*total(dry_nodes(config))))
    out.add("size", f"{describe_bytes(per_row * pool.rows)} of scores")
    done = 0 if replaces else len(store.scores().list("done"))
    out.add("already done", f"{done} of {count} shards")
    return out


def _train_proxy(config: ScoreConfig, store: Store, pool: Table, overwrite: bool) -> RunResult:
    claim = _proxy_claim(config, store, pool, overwrite)
    ids: list[str] = []
    if not is_finished(claim.storage) or claim.check(overwrite):
        begun = begun_with(claim.wanted, pool)
        ids = sample_ids(begun.read(["image_id"])["image_id"].to_pylist(), config)
    job = MaskedImageJob(
        store=store.root,
        model=config.student,
        image_size=config.student_image_size,
        image_ids=tuple(ids),
        settings=config.proxy.paced,
        decoder=config.proxy.decoder,
        masks=config.proxy.masks,
        reconstruction=config.proxy.reconstruction,
        views="separated",
        seed=config.seed,
        snapshot_folder=claim.storage.root,
    )
    return train_run(job, claim, config, export=_no_export, overwrite=overwrite)


def _proxy_model(config: ScoreConfig) -> MaskedImageModel:
    """Build the proxy without its weights; a student that cannot be trained is refused here."""
    with torch.device("meta"):
        encoder = create_encoder(config.student, image_size=config.student_image_size)
        return MaskedImageModel(encoder, config.proxy.decoder)


def _no_export(task: torch.nn.Module, folder: Path) -> None:
    """Export nothing: the proxy's snapshots are its export and are written during training."""


def sample_ids(ids: list[str], config: ScoreConfig) -> list[str]:
    """Choose the images for training the proxy; sorted, a function of seed and ids."""
    if len(ids) <= config.proxy.sample:
        return sorted(ids)
    order = stream(config.seed, "proxy sample").permutation(len(ids))
    ids = sorted(ids)
    return sorted(ids[row] for row in order[: config.proxy.sample])


def _proxy_digest(storage: Storage, steps: tuple[int, ...]) -> str:
    import hashlib

    whole = hashlib.sha256()
    for step in steps:
        whole.update(storage.read(snapshot_name(step)))
    return whole.hexdigest()


STAGE = Stage(stages.SCORE, ScoreConfig, score, plan_score, retry_score)
