"""A picture of what a student reconstructs from both views of a few images."""

from pathlib import Path

import numpy as np
import torch

from echostill.distill.objective.core import DistillationObjective
from echostill.platform.masking.masks import (
    MaskSettings,
    apply_frequency,
    apply_spatial,
    draw_masks,
)
from echostill.platform.masking.mim import to_pixels
from echostill.platform.training.staging import StagedImages

ROWS = 6
COLUMNS = ("image", "blocks hidden", "reconstructed", "bands stopped", "reconstructed")


@torch.no_grad()
def draw_reconstructions(
    objective: DistillationObjective,
    mask_settings: MaskSettings,
    seed: int,
    images: StagedImages,
    path: Path,
) -> None:
    """Draw a few evenly spaced images, their two views and the student's reconstructions.

    Where blocks are hidden or bands are stopped only that part is the student's; the rest is shown
    as it is.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = np.unique(np.linspace(0, len(images) - 1, ROWS).astype(int))
    student = objective.student
    settings = objective.settings.reconstruction
    square = torch.from_numpy(images.pixels[rows].astype(np.float32) / 255)
    pixels = torch.nn.functional.interpolate(square, student.encoder.image_size, mode="area")
    pixels = pixels.expand(-1, 3, -1, -1)
    ids = [images.image_ids[row] for row in rows]
    masks = draw_masks(mask_settings, seed, np.zeros(len(rows), dtype=np.int64), ids)
    spatial = apply_spatial(pixels, masks.spatial)
    frequency = apply_frequency(pixels, masks.frequency)
    made = []
    for view in (spatial, frequency):
        patches = student(view).prediction
        made.append(to_pixels(patches, pixels, student.patch_size, settings.pixel))
    filled = torch.where(masks.spatial[:, None], made[0], pixels).clamp(0, 1)
    # The loss asks for the stopped frequencies alone; the others are those of the view.
    passed = torch.fft.ifftshift(masks.frequency, dim=(-2, -1))[:, None]
    spectrum = torch.where(passed, torch.fft.fft2(pixels), torch.fft.fft2(made[1]))
    restored = torch.fft.ifft2(spectrum).real.clamp(0, 1)
    columns = (pixels, spatial, filled, frequency.clamp(0, 1), restored)
    figure, axes = pyplot.subplots(len(rows), len(columns), figsize=(10, 2 * len(rows)))
    for row, line in enumerate(np.atleast_2d(axes)):
        for axis, title, column in zip(line, COLUMNS, columns, strict=True):
            axis.imshow(column[row].permute(1, 2, 0).numpy())
            axis.axis("off")
            if row == 0:
                axis.set_title(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
