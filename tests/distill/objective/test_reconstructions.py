import numpy as np
import pytest
import torch
from PIL import Image

from echostill.distill.objective.core import DistillationObjective
from echostill.distill.objective.reconstructions import (
    COLUMNS,
    GAP,
    HEAD,
    ROWS,
    SIDE,
    draw_columns,
    draw_reconstructions,
)
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.platform.masking.masks import MaskSettings, draw_masks
from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel
from echostill.platform.models import create_encoder
from echostill.platform.training.staging import StagedImages


def cell(sheet, row, column):
    left, top = column * (SIDE + GAP), HEAD + row * (SIDE + GAP)
    return np.asarray(sheet.crop((left, top, left + SIDE, top + SIDE))).astype(int)


def test_images_stand_below_their_titles():
    values = torch.linspace(0, 1, 6).view(2, 3, 1, 1, 1).expand(-1, -1, 3, 4, 4)
    sheet = draw_columns("abc", values.unbind(1))
    assert sheet.size == (3 * SIDE + 2 * GAP, HEAD + 2 * SIDE + GAP)
    for row in range(2):
        for column in range(3):
            expected = round(255 * (3 * row + column) / 5)
            assert np.all(cell(sheet, row, column) == expected)
    title = np.asarray(sheet.crop((0, 0, SIDE, HEAD)))
    assert title.min() < 128
    assert title.max() == 255


def test_pixels_beyond_the_scale_are_clamped():
    sheet = draw_columns(
        ["beyond"], [torch.tensor([-2.0, 3.0]).view(2, 1, 1, 1).expand(-1, 3, 2, 2)]
    )
    assert np.all(cell(sheet, 0, 0) == 0)
    assert np.all(cell(sheet, 1, 0) == 255)


@pytest.fixture
def sheet(tmp_path):
    torch.manual_seed(0)
    student = MaskedImageModel(create_encoder("tinyusfm-micro"), DecoderSettings()).eval()
    objective = DistillationObjective(student, None, ObjectiveSettings(preset="mim-only"))
    encoder = student.encoder
    masks = MaskSettings().scaled_to(encoder.image_size, encoder.patch_size)
    side = encoder.image_size
    pixels = np.random.default_rng(0).integers(60, 200, (9, 1, side, side), dtype=np.uint8)
    ids = [f"image-{number}" for number in range(9)]
    draw_reconstructions(
        objective, masks, 3, StagedImages(pixels, ids, [""] * 9, []), tmp_path / "a.png"
    )
    rows = np.unique(np.linspace(0, 8, ROWS).astype(int))
    drawn = draw_masks(masks, 3, np.zeros(len(rows), dtype=np.int64), [ids[row] for row in rows])
    return Image.open(tmp_path / "a.png"), pixels[rows], drawn


def test_what_was_not_hidden_is_shown_as_it_is(sheet):
    picture, pixels, masks = sheet
    assert picture.size == (
        len(COLUMNS) * (SIDE + GAP) - GAP,
        HEAD + len(pixels) * (SIDE + GAP) - GAP,
    )
    for row, hidden in enumerate(masks.spatial.numpy()):
        square = Image.fromarray(np.repeat(pixels[row].transpose(1, 2, 0), 3, axis=2))
        enlarged = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(int)
        assert np.array_equal(cell(picture, row, 0), enlarged)
        # Far from a hidden block no pixel of it is resampled into the drawing.
        near = np.asarray(Image.fromarray(hidden).resize((SIDE, SIDE), Image.Resampling.BOX))
        grown = np.zeros_like(near)
        for down in range(-8, 9):
            for across in range(-8, 9):
                grown |= np.roll(near, (down, across), (0, 1))
        untouched = ~grown
        assert untouched.any()
        for column in (1, 2):
            assert np.abs(cell(picture, row, column) - enlarged)[untouched].max() <= 1
            assert np.abs(cell(picture, row, column) - enlarged)[near].mean() > 5
