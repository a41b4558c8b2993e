"""Pretraining a teacher with the USFM recipe: both masks on one input, pixels and spectrum back."""

from pathlib import Path

import torch
from pydantic import Field

from echostill.platform import stages
from echostill.platform.cluster.waiting import describe_plan
from echostill.platform.config import ComputeConfig, added
from echostill.platform.masking.masks import MaskSettings
from echostill.platform.masking.mim import (
    DecoderSettings,
    MaskedImageModel,
    ReconstructionSettings,
)
from echostill.platform.masking.mim_training import MaskedImageJob, MaskedImageTask
from echostill.platform.models import Encoder, create_encoder, save_weights
from echostill.platform.models.weights import Weights, find_initial
from echostill.platform.names import Name
from echostill.platform.stage import Plan, Stage, StageResult, logged
from echostill.platform.tables.fingerprint import Claim, fingerprint
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table
from echostill.platform.training.loop import TrainingTask
from echostill.platform.training.ray import plan
from echostill.platform.training.run import WEIGHTS, is_finished, train_run
from echostill.platform.training.settings import TrainingSettings


class PretrainConfig(ComputeConfig):
    """Pretraining of a teacher on the pool."""

    name: Name = Field("teacher", description="Name of the run; stages look for 'teacher'.")
    model: str = Field("usfm", description="A model of the zoo.")
    image_size: int | None = added("Input side in pixels; default the model's own.", ge=1)
    training: TrainingSettings = TrainingSettings(steps=100_000, batch_size=256)
    decoder: DecoderSettings = DecoderSettings()
    masks: MaskSettings = MaskSettings()
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    initial_weights: str | None = Field(
        None, description="Weights file or finished run to start from; default fresh weights."
    )


@logged(stages.PRETRAIN)
def pretrain(config: PretrainConfig, *, overwrite: bool = False) -> StageResult:
    """Pretrain a teacher on the whole pool and export it in the published key layout.

    Returns:
        Counts of images and steps. The weights are ``runs/<name>/model.safetensors`` in the store.
    """
    store = Store(config.store)
    pool = store.open_pool()
    _check_model(config)
    initial = find_initial(store, config.model, config.initial_weights, config.image_size)
    result = train_run(
        _job(config, initial),
        _claim(config, store, pool, initial),
        config,
        export=_export,
        overwrite=overwrite,
    )
    state = "already done" if result.was_finished else "trained"
    where = result.storage.locate(WEIGHTS)
    return StageResult(
        "pretrain",
        (f"runs/{config.name}",),
        where,
        {"images": pool.rows, "steps": config.training.steps},
        f"{state}: {config.model} on {pool.rows} images, {config.training.steps} steps, "
        f"{result.losses()}: {where}",
        result.was_finished,
    )


def _claim(config: PretrainConfig, store: Store, pool: Table, initial: Weights | None) -> Claim:
    """Return the claim on the run's folder."""
    wanted = fingerprint(
        config,
        weights={"initial": initial.digest} if initial else {},
        inputs={"pool": pool.digest},
        without=("initial_weights",),
    )
    about = {"inputs.pool": f"{pool.rows} images"}
    return Claim(store.run(config.name), wanted, "pretrain", "a run", about=about)


def plan_pretrain(config: PretrainConfig, *, overwrite: bool = False) -> Plan:
    """Describe what :func:`pretrain` would do."""
    store = Store(config.store)
    pool = store.open_pool()
    _check_model(config)
    initial = find_initial(store, config.model, config.initial_weights, config.image_size)
    replaces = _claim(config, store, pool, initial).check(overwrite)
    out = Plan("pretrain")
    out.add("images", f"{pool.rows} in {pool.storage.root}")
    out.add("model", config.model)
    out.add("steps", config.training.describe(pool.rows))
    out.add(
        "resources",
        describe_plan(config, lambda nodes: plan(config.training, nodes, config.compute_on)),
    )
    storage = store.run(config.name)
    out.add("result", storage.locate(WEIGHTS))
    out.add("already done", "yes" if is_finished(storage) and not replaces else "no")
    return out


def _check_model(config: PretrainConfig) -> None:
    """Refuse a model that cannot be pretrained before anything is started."""
    with torch.device("meta"):
        MaskedImageModel(create_encoder(config.model, image_size=config.image_size), config.decoder)


def _export(task: TrainingTask, folder: Path) -> Encoder:
    assert isinstance(task, MaskedImageTask)
    encoder = task.model.encoder
    save_weights(encoder, str(folder / WEIGHTS), {"recipe": "usfm-pretrain"})
    return encoder


def _job(config: PretrainConfig, initial: Weights | None) -> MaskedImageJob:
    return MaskedImageJob(
        store=Store(config.store).root,
        model=config.model,
        image_ids=None,
        settings=config.training,
        decoder=config.decoder,
        masks=config.masks,
        reconstruction=config.reconstruction,
        views="joint",
        seed=config.seed,
        initial=initial,
        image_size=config.image_size,
    )


STAGE = Stage(stages.PRETRAIN, PretrainConfig, pretrain, plan_pretrain)
