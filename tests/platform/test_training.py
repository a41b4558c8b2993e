import copy
import io
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from echostill.platform.augment import AugmentSettings, augment, crop_boxes, resample
from echostill.platform.errors import EchostillError
from echostill.platform.staging import StagedImages
from echostill.platform.training import (
    Batch,
    Place,
    TrainingSettings,
    TrainingState,
    TrainingTask,
    make_batch,
    prefetch,
    train,
)


class Toy(TrainingTask):
    image_size = 8

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 64, 4)
        self.seen = []

    def forward(self, batch: Batch):
        self.seen += batch.image_ids
        per_image = self.linear(batch.pixels.flatten(1)).square().mean(dim=1)
        return per_image.mean(), {"value": per_image.detach().mean()}


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (11, 1, 10, 10), dtype=np.uint8)
    return StagedImages(pixels, [f"image-{i}" for i in range(11)], ["liver"] * 8 + ["lung"] * 3)


SETTINGS = TrainingSettings(steps=9, batch_size=4, learning_rate=1.0, checkpoints=3, log_every=2)


def run(images, settings=SETTINGS, state=None, task=None, keep=None):
    task = task or Toy()
    state = state or TrainingState()

    def on_checkpoint(current):
        if keep is not None:
            weights = {k: v.clone() for k, v in task.state_dict().items()}
            keep[current.step] = (weights, copy.deepcopy(current.optimiser), list(current.history))

    train(task, task, images, settings, 3, state, Place(), on_checkpoint)
    return task, state


def test_a_run_cut_at_a_checkpoint_ends_as_the_whole_one(images):
    kept = {}
    whole, state = run(images, keep=kept)
    assert sorted(kept) == [3, 6, 9]
    weights, optimiser, history = kept[6]
    task = Toy()
    task.load_state_dict(weights)

    buffer = io.BytesIO()
    torch.save(optimiser, buffer)
    buffer.seek(0)
    saved = TrainingState(6, torch.load(buffer, weights_only=True), history)
    cut, again = run(images, state=saved, task=task)
    assert again.history == state.history
    assert whole.seen[24:] == cut.seen
    for name, value in whole.state_dict().items():
        assert torch.equal(value, cut.state_dict()[name])


def test_two_workers_see_together_what_one_sees(images):
    whole = make_batch(images, SETTINGS, 1, 8, 5, Place())
    shares = [make_batch(images, SETTINGS, 1, 8, 5, Place(rank, 2)) for rank in range(2)]
    ids = [None] * 4
    ids[0::2], ids[1::2] = shares[0].image_ids, shares[1].image_ids
    assert ids == whole.image_ids
    pixels = torch.empty_like(whole.pixels)
    pixels[0::2], pixels[1::2] = shares[0].pixels, shares[1].pixels
    assert torch.equal(pixels, whole.pixels)


def test_a_loss_that_is_no_number_stops_and_names_the_images(images):
    class Broken(Toy):
        def forward(self, batch):
            loss, metrics = super().forward(batch)
            return loss * float("nan"), metrics

    with pytest.raises(EchostillError, match=r"step 1; images of that batch: image-"):
        run(images, task=Broken())


def test_the_rate_rises_then_falls_to_zero():
    settings = TrainingSettings(steps=100, batch_size=256, learning_rate=0.5, warmup=0.1)
    rates = [settings.rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.05 * k for k in range(1, 11)])
    assert max(rates) == pytest.approx(0.5)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.001


def test_checkpoints_end_with_the_last_step():
    for steps in (1, 5, 8, 100):
        stops = TrainingSettings(steps=steps, checkpoints=8).checkpoint_steps()
        assert stops[-1] == steps
        assert len(stops) == min(8, steps)


def test_prefetch_hands_on_errors_and_ends_its_thread():
    def make(step):
        if step == 2:
            raise ValueError("no such batch")
        return step

    with pytest.raises(ValueError, match="no such batch"):
        list(prefetch(make, range(5)))
    assert list(prefetch(make, range(2))) == [0, 1]


def test_an_uncropped_image_is_only_resized():
    images = torch.rand(2, 3, 8, 8)
    boxes = np.array([[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]], dtype=float)
    out = resample(images, boxes, 8)
    assert torch.allclose(out[0], images[0], atol=1e-5)
    assert torch.allclose(out[1], images[1].flip(-1), atol=1e-5)


def test_crops_stay_inside_and_belong_to_the_image():
    settings = AugmentSettings()
    boxes = crop_boxes(np.random.default_rng(0).random((200, 5)), settings)
    left, top, width, height, _ = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= 1 + 1e-9).all()
    assert (top + height <= 1 + 1e-9).all()
    area = width * height
    assert (area <= 1).all()
    assert (area > 0.3).all()
    pixels = torch.rand(3, 1, 10, 10)
    epochs = np.array([0, 0, 1])
    whole = augment(pixels, ["a", "b", "c"], epochs, 8, 7, settings)
    single = augment(pixels[1:2], ["b"], epochs[1:2], 8, 7, settings)
    assert torch.equal(whole[1:2], single)


def test_organs_are_drawn_equally_often(images):
    settings = SETTINGS.model_copy(update={"balance": "organ"})
    ids = [
        i for step in range(11) for i in make_batch(images, settings, 1, 8, step, Place()).image_ids
    ]
    lung = sum(int(name.rpartition("-")[2]) >= 8 for name in ids)
    assert len(ids) == 44
    assert abs(lung - 22) <= 2
