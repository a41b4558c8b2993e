"""What the benchmarks of distillation share: the machine, images and models."""

import csv
from pathlib import Path

import numpy as np
import torch

from echostill.distill.objective.core import DistillationObjective
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.distill.task import DistillationTask
from echostill.platform.imaging.images import decode_image, to_square
from echostill.platform.masking.masks import MaskSettings
from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel
from echostill.platform.models import Encoder, create_encoder, load_weights
from echostill.platform.training.collective import TrainingWorker
from echostill.platform.training.loop import TrainingState, train
from echostill.platform.training.run import PlannedRun
from echostill.platform.training.settings import TrainingSettings
from echostill.platform.training.staging import StagedImages, staged_side

ROOT = Path(__file__).resolve().parents[1]
POOL = ROOT / "examples" / "quickstart" / "pool" / "manifest.csv"
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
TEACHER = ROOT / "examples" / "quickstart" / "teacher" / "usfm-micro.safetensors"


def pool_images(manifest: Path, image_size: int, limit: int | None = None) -> StagedImages:
    """Read the images of a manifest (columns file, organ, device) as training stages them."""
    side = staged_side(image_size)
    with manifest.open() as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if (manifest.parent / row["file"]).suffix.lower() in SUFFIXES]
    rows = sorted(rows, key=lambda row: row["file"])
    if limit is not None and limit < len(rows):
        chosen = np.linspace(0, len(rows) - 1, limit).round().astype(int)
        rows = [rows[place] for place in chosen]
    pixels = np.empty((len(rows), 1, side, side), dtype=np.uint8)
    for place, row in enumerate(rows):
        square = to_square(decode_image((manifest.parent / row["file"]).read_bytes()), side)
        pixels[place] = square.mean(axis=0, keepdims=True).round().astype(np.uint8)
    organs = [row.get("organ") or "" for row in rows]
    devices = [row.get("device") or "" for row in rows]
    return StagedImages(pixels, [row["file"] for row in rows], organs, devices)


def trained_teacher(name: str, weights: Path | None):
    """Build a teacher, with weights where a file is given; frozen."""
    torch.manual_seed(7)
    encoder = create_encoder(name)
    if weights is not None:
        load_weights(encoder, str(weights))
    return encoder.eval().requires_grad_(False)


def shared_pass(settings: ObjectiveSettings) -> object:
    """Return what students must have in common to share a pass of their teacher."""
    masks = settings.masks and settings.masks.model_dump_json()
    return settings.views, settings.whole_image, masks


def train_group(
    variants: dict[str, ObjectiveSettings],
    student: str,
    teacher: Encoder | None,
    images: StagedImages,
    training: TrainingSettings,
    seed: int,
) -> dict[str, tuple[Encoder, list[dict[str, float]]]]:
    """Train students that see the same views on one pass of the teacher.

    Each starts from the seed's weights and sees the seed's images, whatever its objective.

    Returns:
        Each student's encoder and its logged values.
    """
    objectives = {}
    for name, settings in variants.items():
        torch.manual_seed(seed)
        model = MaskedImageModel(create_encoder(student), DecoderSettings())
        own = teacher if settings.distil else None
        objectives[name] = DistillationObjective(model, own, settings)
    encoder = model.encoder
    masks = next(iter(variants.values())).masks or MaskSettings()
    task = DistillationTask(
        objectives, masks.scaled_to(encoder.image_size, encoder.patch_size), seed
    )
    state = train(
        task, task, images, training, seed, TrainingState(), TrainingWorker(), lambda _: None
    )
    found = {}
    for place, name in enumerate(variants):
        prefix = "" if len(variants) == 1 else f"{name}/"
        rows = PlannedRun(prefix, None, None, None).rows(state.history)
        found[name] = (task.each(place).student.encoder, rows)
    return found
