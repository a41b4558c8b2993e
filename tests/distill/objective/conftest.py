"""What the tests of the objective share: a batch, and an objective of small models in float64."""

import numpy as np
import pytest
import torch

from echostill.distill.objective.core import DistillationObjective
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.platform.masking.masks import MaskSettings, draw_masks
from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel
from echostill.platform.models import create_encoder

SIZE, BATCH = 64, 3


@pytest.fixture
def batch_of():
    """Make pixels and masks of a batch."""

    def make(seed=0, dtype=torch.float64, size=BATCH):
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.rand(size, 3, SIZE, SIZE, generator=generator, dtype=dtype)
        ids = [f"image {index}" for index in range(size)]
        return pixels, draw_masks(MaskSettings().scaled_to(SIZE), seed, np.zeros(size, int), ids)

    return make


@pytest.fixture
def objective_of():
    """Build an objective from settings, or from their values."""

    def make(chosen=None, **settings):
        torch.manual_seed(0)
        student = MaskedImageModel(
            create_encoder("tinyusfm-micro", image_size=SIZE), DecoderSettings(dim=24)
        )
        teacher = create_encoder("usfm-micro", image_size=SIZE)
        with torch.no_grad():  # an untrained teacher sees little difference between images
            for parameter in teacher.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        chosen = chosen or ObjectiveSettings(**{"preset": "tinyusfm", **settings})
        return DistillationObjective(student, teacher, chosen).double()

    return make


@pytest.fixture
def lose():
    """Compute the output of an objective on a batch."""

    def call(objective, batch):
        pixels, masks = batch
        return objective(pixels, objective.views(pixels, masks), masks)

    return call
