"""Masked image modelling as a training task: the recipe of the teacher and of the proxy."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from echostill.platform.masking.masks import MaskChoice, MaskSettings, choose_masks
from echostill.platform.masking.mim import (
    DecoderSettings,
    MaskedImageModel,
    ReconstructionSettings,
    joint_reconstruction,
    separated_reconstruction,
)
from echostill.platform.models import create_encoder
from echostill.platform.models.weights import Weights
from echostill.platform.tables.store import Store
from echostill.platform.training.batches import TrainingBatch
from echostill.platform.training.loop import TrainingState, TrainingTask
from echostill.platform.training.settings import TrainingSettings
from echostill.platform.training.staging import StagedImages, stage_images

Views = Literal["joint", "separated"]


class MaskedImageTask(TrainingTask):
    """Reconstruct images from one jointly corrupted view (USFM) or from two separate ones."""

    def __init__(
        self,
        model: MaskedImageModel,
        masks: MaskSettings,
        reconstruction: ReconstructionSettings,
        views: Views,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.masks, self.reconstruction = masks, reconstruction
        self.views, self.seed = views, seed
        self.image_size = model.encoder.image_size

    def draw(self, batch: TrainingBatch) -> MaskChoice:
        """Choose the masks of a batch."""
        return choose_masks(self.masks, self.seed, batch.epochs, batch.image_ids)

    def forward(
        self, batch: TrainingBatch, prepared: None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the mean reconstruction loss."""
        masks = (batch.draws or self.draw(batch)).masks(self.masks, batch.pixels.device)
        reconstruct = joint_reconstruction if self.views == "joint" else separated_reconstruction
        losses = reconstruct(self.model, batch.pixels, masks, self.reconstruction)
        return losses.mean, {
            "reconstruction_spatial": losses.spatial.detach().mean(),
            "reconstruction_frequency": losses.frequency.detach().mean(),
        }


@dataclass(frozen=True)
class MaskedImageJob:
    """A masked image modelling run: which model, on which images of the pool."""

    store: str
    model: str
    image_ids: tuple[str, ...] | None
    settings: TrainingSettings
    decoder: DecoderSettings
    masks: MaskSettings
    reconstruction: ReconstructionSettings
    views: Views
    seed: int
    snapshot_folder: str | None = None
    initial: Weights | None = None
    image_size: int | None = None  # of the model's input; None is its own

    def build(self) -> tuple[TrainingTask, StagedImages]:
        """Build the model with seeded weights and open the staged images."""
        task = self.task()
        images = stage_images(
            Store(self.store).open_pool(), self.store, task.image_size, self.image_ids
        )
        return task, images

    def task(self) -> MaskedImageTask:
        """Build the task alone, its weights set by the seed."""
        torch.manual_seed(self.seed)
        if self.initial is not None:
            encoder = self.initial.load(trainable=True)
        else:
            encoder = create_encoder(self.model, image_size=self.image_size)
        model = MaskedImageModel(encoder, self.decoder)
        masks = self.masks.scaled_to(encoder.image_size, encoder.patch_size)
        seed = self.settings.seed_of_views(self.seed)
        return MaskedImageTask(model, masks, self.reconstruction, self.views, seed)

    def task_to_export(self) -> MaskedImageTask:
        """Build the task to take trained weights."""
        return self.task()

    def on_checkpoint(self, weights: dict[str, Tensor], state: TrainingState) -> None:
        """Keep the weights of every checkpoint for good, where a folder is given."""
        if self.snapshot_folder is not None:
            save_snapshot(self.snapshot_folder, weights, state.step)


def snapshot_name(step: int) -> str:
    """File name of the weights kept at a step."""
    return f"snapshot-{step:06d}.safetensors"


def save_snapshot(folder: str, weights: dict[str, Tensor], step: int) -> None:
    """Write a task's weights into a folder or URI, atomically."""
    from safetensors.torch import save

    from echostill.platform.tables.storage import Storage

    Storage(folder).write(snapshot_name(step), save(weights))
