"""The score stage: a briefly trained proxy, then teacher features and gradient norms in one pass.

The proxy is the student itself, trained with the masked image modelling objective on a sample of
the pool; its weights are kept at several steps. Then every image is decoded once, and gives the
teacher's feature and, for each kept proxy, the norm of the last layer's gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, model_validator
from safetensors.torch import load as load_tensors
from torch import Tensor

from echostill.curation.gradient import GradientLoss, prediction_gradient_norms
from echostill.platform import runtime
from echostill.platform.config import Config, ModelsConfig, execution
from echostill.platform.images import DecodeError, decode_image, to_square
from echostill.platform.masks import Masks, MaskSettings, frequency_mask, spatial_mask
from echostill.platform.mim import DecoderSettings, MaskedImageModel, ReconstructionSettings
from echostill.platform.mim_training import MaskedImageJob, snapshot_name
from echostill.platform.models import create_encoder
from echostill.platform.ray_training import plan as plan_training
from echostill.platform.runs import claim, fingerprint
from echostill.platform.schemas import QUARANTINE_SCHEMA, scores_schema
from echostill.platform.seeding import stream
from echostill.platform.shards import Outcome, ShardedStage
from echostill.platform.storage import Storage
from echostill.platform.store import Plan, Store, describe_bytes, save_configuration
from echostill.platform.tables import Table
from echostill.platform.teacher import Weights, find_teacher
from echostill.platform.training import TrainingSettings
from echostill.platform.training_run import RunResult, is_finished, train_run

PROXY = "proxy"


class ProxySettings(Config):
    """The proxy's brief training and the steps at which its gradients are looked at."""

    training: TrainingSettings = TrainingSettings(steps=2000, batch_size=256)
    sample: int = Field(50_000, ge=1, description="Images of the pool that it is trained on.")
    snapshots: int = Field(5, ge=3, description="Steps at which its weights are kept.")
    decoder: DecoderSettings = DecoderSettings()
    masks: MaskSettings = MaskSettings()
    reconstruction: ReconstructionSettings = ReconstructionSettings()

    @model_validator(mode="after")
    def _steps_suffice(self) -> "ProxySettings":
        if self.training.steps < self.snapshots:
            raise ValueError(
                f"{self.snapshots} snapshots need at least as many training.steps, "
                f"not {self.training.steps}"
            )
        return self

    @property
    def paced(self) -> TrainingSettings:
        """The training settings, with a checkpoint at each snapshot."""
        return self.training.model_copy(update={"checkpoints": self.snapshots})

    def snapshot_steps(self) -> tuple[int, ...]:
        """Steps whose weights are kept, evenly spaced up to the last."""
        return tuple(self.paced.checkpoint_steps())


class ScoreConfig(ModelsConfig):
    """Scoring of the pool."""

    proxy: ProxySettings = ProxySettings()
    gradient_loss: GradientLoss = Field("mse", description="Loss whose gradient is measured.")
    mask_draws: int = Field(2, ge=1, description="Mask draws the gradient norm is averaged over.")
    batch_size: int = Field(64, ge=1, description="Images per forward pass.")
    workers: int | None = execution(None, "Scoring workers; default as many as fit.", ge=1)
    threads: int = execution(1, "Threads per CPU worker.", ge=1)
    max_error_rate: float = execution(0.05, "Largest share of quarantined rows.", ge=0, le=1)


def score(config: ScoreConfig, *, overwrite: bool = False) -> str:
    """Train the proxy and fill the scores table.

    Returns:
        What was done, in words.
    """
    store = Store(config.store)
    pool = store.open_pool()
    teacher = find_teacher(config)
    proxy = _train_proxy(config, store, pool, overwrite)
    steps = config.proxy.snapshot_steps()
    wanted = fingerprint(
        config,
        weights={"teacher": teacher.digest, "proxy": _proxy_digest(proxy.storage, steps)},
        inputs={"pool": pool.digest},
        without=("teacher",),
    )
    claim(store.scores(), wanted, "scores", overwrite)
    worker = ScoreWorker(
        pool=store.pool(),
        teacher=teacher,
        student=config.student,
        proxy=config.proxy,
        snapshots=proxy.storage,
        gradient_loss=config.gradient_loss,
        mask_draws=config.mask_draws,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    stage = ShardedStage(
        name="score",
        table=store.scores(),
        quarantine=store.quarantine("score"),
        schema=scores_schema(create_encoder(teacher.model).dim, len(steps)),
        fingerprint=wanted,
        max_error_rate=config.max_error_rate,
    )
    if stage.is_finished():
        return f"already done: {stage.accounting().describe()}"
    save_configuration(store.scores(), config)
    runtime.connect(config.address)
    where = runtime.plan_workers(
        config.workers, len(pool.part_names), *runtime.cluster_resources(), config.threads
    )
    done = stage.run(pool.part_names, worker.loaded, where, progress=config.progress)
    return f"proxy {proxy.losses()}; {done.describe()}"


def plan_score(config: ScoreConfig) -> Plan:
    """Say what :func:`score` would do."""
    store = Store(config.store)
    pool = store.open_pool()
    teacher = find_teacher(config)
    training = config.proxy.training
    dimension = create_encoder(teacher.model).dim
    cpus, gpus = runtime.local_resources()
    where = runtime.plan_workers(config.workers, len(pool.part_names), cpus, gpus, config.threads)
    per_row = dimension * 2 + len(config.proxy.snapshot_steps()) * 4 + 48
    out = Plan("score")
    out.add("pool", f"{pool.rows} images in {len(pool.part_names)} shards, {pool.storage.root}")
    out.add("teacher", f"{teacher.model}, {teacher.path}")
    out.add("proxy", f"{config.student}, {training.describe(min(config.proxy.sample, pool.rows))}")
    out.add("proxy done", "yes" if is_finished(store.run(PROXY)) else "no")
    out.add("proxy workers", plan_training(training, cpus, gpus).describe())
    out.add("scoring", where.describe())
    out.add("size", f"{describe_bytes(per_row * pool.rows)} of scores")
    done = len(store.scores().list("done"))
    out.add("already done", f"{done} of {len(pool.part_names)} shards")
    return out


def _train_proxy(config: ScoreConfig, store: Store, pool: Table, overwrite: bool) -> RunResult:
    storage = store.run(PROXY)
    wanted = fingerprint(
        config,
        inputs={"pool": pool.digest},
        without=("teacher", "gradient_loss", "mask_draws", "batch_size"),
    )
    ids = sample_ids(pool.read(["image_id"])["image_id"].to_pylist(), config)
    job = MaskedImageJob(
        store=store.root,
        model=config.student,
        image_ids=tuple(ids),
        settings=config.proxy.paced,
        decoder=config.proxy.decoder,
        masks=config.proxy.masks,
        reconstruction=config.proxy.reconstruction,
        views="separated",
        seed=config.seed,
        snapshot_folder=storage.root,
    )
    return train_run(
        job, storage, wanted, config, stage="proxy", export=_no_export, overwrite=overwrite
    )


def _no_export(task: torch.nn.Module, folder: Path) -> None:
    """The proxy's snapshots are its export, and they are written while it trains."""


def sample_ids(ids: list[str], config: ScoreConfig) -> list[str]:
    """Choose the images that the proxy is trained on; sorted, a function of seed and ids."""
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


@dataclass
class ScoreWorker:
    """Scores one part of the pool at a time. Picklable until :meth:`loaded`."""

    pool: Storage
    teacher: Weights
    student: str
    proxy: ProxySettings
    snapshots: Storage
    gradient_loss: GradientLoss
    mask_draws: int
    batch_size: int
    seed: int
    _teacher: Any = field(default=None, repr=False)
    _proxies: list[MaskedImageModel] = field(default_factory=list, repr=False)

    def loaded(self) -> "ScoreWorker":
        """Load teacher and proxies; called in each worker process."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._teacher = self.teacher.load().to(device)
        self._proxies = []
        for step in self.proxy.snapshot_steps():
            model = MaskedImageModel(create_encoder(self.student), self.proxy.decoder)
            saved = load_tensors(self.snapshots.read(snapshot_name(step)))
            model.load_state_dict({k.removeprefix("model."): v for k, v in saved.items()})
            self._proxies.append(model.eval().requires_grad_(False).to(device))
        return self

    def process(self, payload: Any) -> Outcome:
        """Score the images of one part of the pool."""
        part = Table.open(self.pool, "ingest").read_part(
            str(payload), ["image_id", "source", "image"]
        )
        ids, refused = [], []
        columns: dict[str, list[np.ndarray]] = {}
        for batch_ids, images, bad in self._batches(part):
            refused += bad
            if not batch_ids:
                continue
            values = self._score(images)
            finite = np.isfinite(np.concatenate(list(values.values()), axis=1)).all(axis=1)
            for row in np.flatnonzero(~finite):
                refused.append(_refusal(batch_ids[row], "NonFinite", "its scores are not finite"))
            ids += [batch_ids[row] for row in np.flatnonzero(finite)]
            for name, value in values.items():
                columns.setdefault(name, []).append(value[finite])
        merged = {name: np.concatenate(parts) for name, parts in columns.items()}
        return Outcome(
            self._table(ids, merged), pa.Table.from_pylist(refused, schema=QUARANTINE_SCHEMA)
        )

    def _batches(
        self, part: pa.Table
    ) -> Iterator[tuple[list[str], list[np.ndarray], list[dict[str, str]]]]:
        """Decode in batches: ids, images (H, W[, 3]) uint8, and what could not be decoded."""
        for start in range(0, part.num_rows, self.batch_size):
            ids, images, refused = [], [], []
            for row in part.slice(start, self.batch_size).to_pylist():
                try:
                    images.append(decode_image(row["image"]))
                    ids.append(row["image_id"])
                except DecodeError as error:
                    refused.append(_refusal(row["image_id"], type(error).__name__, str(error)))
            yield ids, images, refused

    def _score(self, images: list[np.ndarray]) -> dict[str, np.ndarray]:
        by_size: dict[int, Tensor] = {}

        def pixels(size: int) -> Tensor:
            if size not in by_size:
                square = np.stack([to_square(image, size) for image in images])
                by_size[size] = torch.from_numpy(square.astype(np.float32) / 255)
            return by_size[size].to(next(self._teacher.parameters()).device)

        with torch.inference_mode():
            pooled = self._teacher(pixels(self._teacher.image_size)).pooled.float()
            feature = torch.nn.functional.normalize(pooled, dim=1)
        target = pixels(self._proxies[0].encoder.image_size)
        masks = [self._masks(draw, target) for draw in range(self.mask_draws)]
        norms, errors = [], []
        for proxy in self._proxies:
            measured = [
                prediction_gradient_norms(
                    proxy, target, mask, self.gradient_loss, self.proxy.reconstruction
                )
                for mask in masks
            ]
            norms.append(torch.stack([norm for norm, _ in measured]).mean(dim=0))
            errors.append(torch.stack([error for _, error in measured]).mean(dim=0))
        return {
            "feature": feature.cpu().numpy(),
            "gradient": torch.stack(norms, dim=1).cpu().numpy(),
            "reconstruction_error": errors[-1][:, None].cpu().numpy(),
        }

    def _masks(self, draw: int, target: Tensor) -> Masks:
        """The same masks for every image, so that their gradients compare."""
        encoder = self._proxies[0].encoder
        settings = self.proxy.masks.scaled_to(encoder.image_size, encoder.patch_size)
        numbers = stream(self.seed, "score mask", draw)
        spatial = spatial_mask(numbers.random((1, settings.spatial.count)), settings.spatial)
        frequency = frequency_mask(
            numbers.random((1, settings.frequency.count)), settings.frequency
        )
        shape = (len(target), -1, -1)
        return Masks(
            spatial.to(target.device).expand(shape), frequency.to(target.device).expand(shape)
        )

    def _table(self, ids: list[str], columns: dict[str, np.ndarray]) -> pa.Table:
        schema = scores_schema(self._teacher.dim, len(self._proxies))
        if not ids:
            return schema.empty_table()
        gradient = columns["gradient"].astype(np.float32)
        exact = gradient.astype(np.float64)
        feature = columns["feature"].astype(np.float16)
        return pa.table(
            [
                pa.array(ids),
                pa.FixedSizeListArray.from_arrays(pa.array(feature.ravel()), feature.shape[1]),
                pa.array(exact.mean(axis=1).astype(np.float32)),
                pa.array(exact.std(axis=1).astype(np.float32)),
                pa.FixedSizeListArray.from_arrays(pa.array(gradient.ravel()), gradient.shape[1]),
                pa.array(columns["reconstruction_error"][:, 0].astype(np.float32)),
            ],
            schema=schema,
        )


def _refusal(image_id: str, error_class: str, message: str) -> dict[str, str]:
    return {
        "stage": "score",
        "id": image_id,
        "source": "",
        "error_class": error_class,
        "message": message,
    }
