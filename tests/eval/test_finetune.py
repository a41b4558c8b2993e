import copy
import dataclasses

import numpy as np
import pytest
import torch

from echostill.eval.datasets import LabelledDataset
from echostill.eval.finetune import FineTuneSettings, augment_pair, finetune
from echostill.eval.heads import ClassificationTask, SegmentationTask
from echostill.eval.splits import Split
from echostill.eval.unius.protocols.networks import LinearClassifier
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.models import create_encoder

SPLIT = Split(np.arange(16), np.arange(16, 24))


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return create_encoder("tinyusfm-micro", image_size=64)


def bright_or_dark(count=24):
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 2
    pixels = generator.integers(0, 100, (count, 3, 64, 64)).astype(np.uint8)
    pixels += (100 * labels).astype(np.uint8)[:, None, None, None]
    names = tuple(map(str, range(count)))
    return LabelledDataset(
        "light",
        "classification",
        names,
        np.array(names),
        pixels,
        labels,
        None,
        ("dark", "bright"),
        None,
        (),
    )


def discs(count=24):
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    pixels = generator.integers(0, 60, (count, 3, 64, 64)).astype(np.uint8)
    masks = np.zeros((count, 64, 64), dtype=np.uint8)
    for index in range(count):
        centre = generator.integers(20, 44, 2)
        masks[index] = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 14**2
        pixels[index] += masks[index] * np.uint8(150)
    names = tuple(map(str, range(count)))
    return LabelledDataset(
        "discs",
        "segmentation",
        names,
        np.array(names),
        pixels,
        None,
        masks,
        ("disc",),
        None,
        (),
    )


@pytest.mark.slow
def test_classification_learns_is_repeatable_and_leaves_the_encoder(encoder):
    before = copy.deepcopy(encoder.state_dict())
    settings = FineTuneSettings(steps=20, batch_size=8, check_every=10, rates=(1.0,))
    torch.manual_seed(1)
    first = finetune(encoder, bright_or_dark(), SPLIT, settings, 3)
    torch.manual_seed(2)  # torch's own generator has no say, and is not moved
    state = torch.random.get_rng_state()
    second = finetune(encoder, bright_or_dark(), SPLIT, settings, 3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert np.array_equal(first.losses, second.losses)
    assert np.array_equal(first.predictions, second.predictions)
    assert first.metrics["balanced_accuracy"] == 1
    assert first.losses[-1] < first.losses[0]
    assert first.losses[0] == pytest.approx(np.log(2), abs=0.1)
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    other = finetune(encoder, bright_or_dark(), SPLIT, settings, 4)
    assert not np.array_equal(first.losses, other.losses)


def test_segmentation_learns(encoder):
    settings = FineTuneSettings(steps=60, batch_size=8, head_width=16, rates=(1.0,))
    result = finetune(encoder, discs(), SPLIT, settings, 0)
    assert result.predictions.shape == (8, 64, 64)
    assert result.metrics["dice"] > 0.75
    assert result.metrics["hd95"] < 20


def test_another_precision_learns_as_well(encoder):
    settings = FineTuneSettings(steps=10, batch_size=8, check_every=5, rates=(1.0,))
    exact = finetune(encoder, bright_or_dark(), SPLIT, settings, 0)
    found = finetune(encoder, bright_or_dark(), SPLIT, settings, 0, precision="bfloat16")
    assert not np.array_equal(exact.losses, found.losses)
    assert found.losses[0] == pytest.approx(exact.losses[0], rel=1e-2)
    assert found.predictions.dtype == exact.predictions.dtype == np.float32
    assert found.metrics["balanced_accuracy"] == exact.metrics["balanced_accuracy"] == 1


@pytest.mark.parametrize("classes", [1, 2])
def test_losses_are_sums_in_float32_whatever_the_products(encoder, classes):
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    masks = (pixels[:, 0] * (classes + 1)).to(torch.uint8)
    for task, targets in (
        (SegmentationTask(encoder, classes, 8, 0.5), masks),
        (ClassificationTask(encoder, 2), torch.tensor([0, 1])),
        (LinearClassifier(encoder, 2), torch.tensor([0, 1])),
    ):
        with torch.no_grad():
            exact = task.training_step(pixels, targets)
            with torch.autocast("cpu", torch.bfloat16):
                loss = task.training_step(pixels, targets)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact.item(), rel=2e-2)


def test_training_ends_when_the_inner_side_gets_no_better(encoder):
    settings = FineTuneSettings(
        steps=400, batch_size=8, check_every=2, patience=2, frozen=True, rates=(1.0, 1e-6)
    )
    result = finetune(encoder, bright_or_dark(), SPLIT, settings, 0)
    assert len(result.losses) < 400  # the inner side is right after a few steps
    assert len(result.losses) % 2 == 0
    assert result.metrics["balanced_accuracy"] == 1
    assert result.converged is True


@pytest.mark.parametrize(
    ("reached", "wanted"),
    [
        ([0.1, 0.2, 0.3, 0.4], False),  # better at every look, the last one too
        ([0.1, 0.4, 0.4, 0.3], True),  # twice no better, which is its patience
        ([0.1, 0.2, 0.4, 0.3], False),  # once no better
        ([0.1, 1.0], True),  # nothing is better than that
    ],
)
def test_a_training_that_ends_while_it_improves_says_so(encoder, monkeypatch, reached, wanted):
    looks = iter(reached)
    monkeypatch.setattr("echostill.eval.finetune.balanced_accuracy", lambda *_: next(looks))
    settings = FineTuneSettings(
        steps=4, batch_size=4, check_every=1, patience=2, frozen=True, rates=(1.0,)
    )
    result = finetune(encoder, bright_or_dark(), SPLIT, settings, 0)
    assert result.converged is wanted
    assert len(result.losses) == len(reached)


def test_a_slow_rate_that_still_improves_is_not_converged(encoder, monkeypatch):
    looks = iter([0.5, 0.4, 0.1, 0.2])  # the first rate is done, the second on its way
    monkeypatch.setattr("echostill.eval.finetune.balanced_accuracy", lambda *_: next(looks))
    settings = FineTuneSettings(
        steps=2, batch_size=4, check_every=1, patience=1, frozen=True, rates=(1.0, 0.1)
    )
    assert finetune(encoder, bright_or_dark(), SPLIT, settings, 0).converged is False


class Watched(torch.Tensor):
    """A loss that counts how often its value is asked for, which would wait for a GPU."""

    asked = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("item", "cpu", "numpy", "tolist", "__float__"):
            Watched.asked += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def test_losses_are_read_together(encoder, monkeypatch):
    plain = ClassificationTask.training_step

    def step(task, *batch):
        return plain(task, *batch).as_subclass(Watched)

    monkeypatch.setattr(ClassificationTask, "training_step", step)
    monkeypatch.setattr(Watched, "asked", 0)
    monkeypatch.setattr("echostill.eval.finetune.balanced_accuracy", lambda *_: 0.5)
    settings = FineTuneSettings(
        steps=11, batch_size=4, check_every=5, frozen=True, rates=(1.0,), patience=9
    )
    result = finetune(encoder, bright_or_dark(), SPLIT, settings, 0)
    assert len(result.losses) == 11
    assert Watched.asked <= 2 * 3  # at steps 5, 10 and 11, not at each


def test_too_few_groups_for_an_inner_side(encoder):
    data = dataclasses.replace(
        bright_or_dark(), groups=np.array([f"g{k % 2}{k >= 16}" for k in range(24)])
    )
    settings = FineTuneSettings(steps=3, batch_size=4, frozen=True)
    result = finetune(encoder, data, SPLIT, settings, 0)
    assert len(result.losses) == 3
    assert result.converged is None


def test_frozen_trains_the_head_only(encoder, monkeypatch):
    seen = []
    plain = torch.optim.AdamW

    def record(groups, **options):
        seen.extend(groups)
        return plain(groups, **options)

    monkeypatch.setattr(torch.optim, "AdamW", record)
    settings = FineTuneSettings(steps=5, batch_size=8, frozen=True, rates=(1.0,))
    result = finetune(encoder, bright_or_dark(), SPLIT, settings, 0)
    assert len(seen) == 1
    assert len(seen[0]["params"]) == 2
    assert result.losses[-1] < result.losses[0]


def test_layer_decay_holds_the_early_blocks_back(encoder, monkeypatch):
    peaks = set()
    plain = torch.optim.AdamW

    def record(groups, **options):
        peaks.update(group["peak"] for group in groups if group["params"])
        return plain(groups, **options)

    monkeypatch.setattr(torch.optim, "AdamW", record)
    settings = FineTuneSettings(steps=1, batch_size=4, layer_decay=0.5, rates=(1.0,))
    finetune(encoder, bright_or_dark(), SPLIT, settings, 0)
    rate = settings.encoder_learning_rate
    body = {rate * 0.5**k for k in range(encoder.depth + 2)}
    assert peaks == {settings.head_learning_rate, *body}


def test_rates():
    settings = FineTuneSettings(steps=100, warmup=0.1)
    shares = [settings.rate_share(step) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == 1
    assert shares[-1] == pytest.approx(1 / 90)
    assert FineTuneSettings(steps=1, warmup=1.0).rate_share(0) == 1
    assert FineTuneSettings(steps=1, warmup=0.0).rate_share(0) == 1


def test_masks_follow_their_images():
    mask = torch.zeros(2, 32, 32, dtype=torch.uint8)
    mask[:, 4:12, 20:30] = 1
    images = mask[:, None].float().expand(-1, 3, -1, -1)
    settings = FineTuneSettings(flip=0.5, rotation=40)
    uniforms = np.array([[0.1, 0.9], [0.9, 0.2]])  # flipped and turned one way; turned the other
    turned, followed = augment_pair(images, mask, uniforms, settings)
    assert followed.dtype == torch.uint8
    agreement = ((turned[:, 0] > 0.5) == (followed > 0)).float().mean()
    assert agreement > 0.98
    assert abs(int(followed[0].sum()) - 80) < 15


def test_a_flip_without_rotation_is_exact():
    images, mask = torch.rand(1, 3, 16, 16), torch.randint(0, 4, (1, 16, 16)).to(torch.uint8)
    settings = FineTuneSettings(flip=1.0, rotation=0.0)
    flipped, followed = augment_pair(images, mask, np.array([[0.3, 0.7]]), settings)
    torch.testing.assert_close(flipped, images.flip(-1), atol=1e-5, rtol=0)
    assert torch.equal(followed, mask.flip(-1))
    none, _ = augment_pair(
        images, mask, np.array([[0.3, 0.7]]), FineTuneSettings(flip=0, rotation=0)
    )
    torch.testing.assert_close(none, images, atol=1e-5, rtol=0)


def test_a_wrong_size_and_a_diverged_loss_are_told(encoder):
    small = create_encoder("tinyusfm-micro", image_size=32)
    with pytest.raises(UsageError, match="expects images of 32 px"):
        finetune(small, discs(), SPLIT, FineTuneSettings(steps=1), 0)
    broken = copy.deepcopy(encoder)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(EchostillError, match=r"nan at step 1\."):
        finetune(broken, bright_or_dark(), SPLIT, FineTuneSettings(steps=3), 0)
