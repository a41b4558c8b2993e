"""A picture of what a student reconstructs from both views of a few images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

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
SIDE, GAP, HEAD = 152, 8, 28  # of a drawn image, between two, and above the first row, in pixels
FONT = 13  # height of the titles in pixels


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
    filled = torch.where(masks.spatial[:, None], made[0], pixels)
    # The loss asks for the stopped frequencies alone; the others are those of the view.
    passed = torch.fft.ifftshift(masks.frequency, dim=(-2, -1))[:, None]
    spectrum = torch.where(passed, torch.fft.fft2(pixels), torch.fft.fft2(made[1]))
    restored = torch.fft.ifft2(spectrum).real
    draw_columns(COLUMNS, (pixels, spatial, filled, frequency, restored)).save(path)


def draw_columns(titles: Sequence[str], columns: Sequence[Tensor]) -> Image.Image:
    """Draw columns of images, each below its title.

    Args:
        titles: One for each column.
        columns: (B, 3, S, S) each, on the scale of [0, 1], to which they are clamped.
    """
    size = (len(columns) * (SIDE + GAP) - GAP, HEAD + len(columns[0]) * (SIDE + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for place, (title, column) in enumerate(zip(titles, columns, strict=True)):
        left = place * (SIDE + GAP)
        pen.text((left + SIDE / 2, HEAD / 2), title, "black", font, anchor="mm")
        values = (column.clamp(0, 1) * 255).round().to(torch.uint8)
        for row, value in enumerate(values.permute(0, 2, 3, 1).numpy()):
            drawn = Image.fromarray(value).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(drawn, (left, HEAD + row * (SIDE + GAP)))
    return sheet
