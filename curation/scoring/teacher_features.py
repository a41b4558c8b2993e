"""Teacher features, as in a store's scores, for images that are not in its pool."""

import json

import numpy as np
import torch

from echostill.platform.config import ModelsConfig, TeacherSettings
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import to_square
from echostill.platform.models import Encoder
from echostill.platform.models.weights import find_teacher
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table

IMAGES_PER_BATCH = 32


def teacher_of_scores(store: Store, scores: Table) -> Encoder:
    """Load the teacher with which the scores were computed.

    Raises:
        UsageError: Its weights are missing, or are not the weights used for the scores.
    """
    saved = json.loads(scores.storage.read("configuration.json")).get("teacher", {})
    settings = TeacherSettings(**saved)
    found = find_teacher(ModelsConfig(store=store.root, teacher=settings))
    if found.digest != scores.manifest["fingerprint"]["weights"].get("teacher"):
        raise UsageError(
            f"the teacher's weights '{found.path}' differ from the weights used for the scores: "
            "restore the original file, or run `echostill score` again."
        )
    return found.load()


def teacher_features(teacher: Encoder, images: list[np.ndarray]) -> np.ndarray:
    """Compute features as the score stage does.

    Args:
        teacher: The teacher, in evaluation mode.
        images: uint8 (H, W) or (H, W, 3) each.

    Returns:
        (N, D) float16, of unit length.
    """
    found = [np.empty((0, teacher.feature_dim), dtype=np.float16)]
    for start in range(0, len(images), IMAGES_PER_BATCH):
        batch = images[start : start + IMAGES_PER_BATCH]
        squares = np.stack([to_square(image, teacher.image_size) for image in batch])
        with torch.inference_mode():
            pooled = teacher(torch.from_numpy(squares.astype(np.float32) / 255)).pooled.float()
            feature = torch.nn.functional.normalize(pooled, dim=1)
        found.append(feature.numpy().astype(np.float16))
    return np.concatenate(found)
