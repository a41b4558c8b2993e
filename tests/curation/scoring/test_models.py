"""Scoring models: draws together or apart, and how far bfloat16 is from float32."""

import numpy as np
import pytest
import torch
from PIL import Image

from echostill.curation.scoring import models as module
from echostill.curation.scoring.gradient import prediction_gradient_norms
from echostill.curation.scoring.models import ScoringModels
from echostill.platform.masking.masks import MaskSettings
from echostill.platform.masking.mim import MaskedImageModel, ReconstructionSettings
from echostill.platform.models import create_encoder

SIDE, PROXIES, DRAWS = 128, 2, 3


def build(loss="mse", precision="float32"):
    torch.manual_seed(1)
    proxies = [MaskedImageModel(create_encoder("tinyusfm-micro")) for _ in range(PROXIES)]
    return ScoringModels(
        create_encoder("usfm-micro"),
        proxies,
        masks=MaskSettings(),
        draws=DRAWS,
        seed=3,
        loss=loss,
        reconstruction=ReconstructionSettings(),
        precision=precision,
    )


@pytest.fixture(scope="module")
def images(sample):
    """Real ultrasound images, as bytes, (N, 1, S, S)."""
    files = sorted(sample.rglob("*.jpg"))[::32]
    pictures = [Image.open(file).convert("L").resize((SIDE, SIDE)) for file in files]
    return torch.from_numpy(np.stack([np.asarray(picture)[None] for picture in pictures]))


def columns(models, images):
    edges = np.cumsum(list(models.widths.values()))[:-1]
    values = models({SIDE: images}).numpy()
    return dict(zip(models.widths, np.split(values, edges, axis=1), strict=True))


@pytest.mark.parametrize("loss", ["mse", "separated"])
def test_draws_together_give_what_each_draw_gives(loss, images, monkeypatch):
    """GPUs take all draws in one pass; here on the CPU, and against a pass for each."""
    models, pixels = build(loss), images[:5].float().expand(-1, 3, -1, -1) / 255
    expected = np.stack(
        [
            torch.stack(
                [
                    prediction_gradient_norms(
                        proxy,
                        pixels,
                        type(mask)(*(part.expand(5, -1, -1) for part in mask)),
                        loss,
                    )[0]
                    for mask in models.masks
                ]
            )
            .mean(dim=0)
            .numpy()
            for proxy in models.proxies
        ],
        axis=1,
    )
    np.testing.assert_array_equal(columns(models, images[:5])["gradient"], expected)
    monkeypatch.setattr(module, "draws_apart", lambda device: False)
    together = columns(models, images[:5])["gradient"]
    np.testing.assert_allclose(together, expected, rtol=1e-4)


def test_bfloat16_keeps_features_and_ranks(images):
    exact, found = (columns(build("mse", p), images) for p in ("float32", "bfloat16"))
    cosine = (exact["feature"] * found["feature"]).sum(axis=1)
    assert cosine.min() >= 0.999
    assert not np.array_equal(exact["feature"], found["feature"])
    ranks = [values["gradient"].mean(axis=1).argsort().argsort() for values in (exact, found)]
    assert len(images) >= 30
    assert np.corrcoef(*ranks)[0, 1] >= 0.99
    assert all(values.dtype == np.float32 for values in found.values())


def test_scoring_a_batch_makes_nobody_wait(images):
    """No call of a batch reads a value of the device; its result is read when it is fetched."""
    from torch.profiler import ProfilerActivity, profile

    models = build("separated")
    models({SIDE: images[:2]})
    with profile(activities=[ProfilerActivity.CPU]) as found:
        models({SIDE: images[:2]})
    names = {event.key for event in found.key_averages()}
    assert "aten::addmm" in names or "aten::linear" in names
    waits = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero"}
    assert not names & waits
