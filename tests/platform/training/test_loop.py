import copy
import io
import itertools
import pickle

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from echostill.platform.errors import UsageError
from echostill.platform.models import create_encoder
from echostill.platform.training.augment import AugmentSettings, augment, crop_boxes, resample
from echostill.platform.training.batches import TrainingBatch, make_batch, prefetch, replay
from echostill.platform.training.collective import TrainingWorker
from echostill.platform.training.loop import (
    TrainingSettings,
    TrainingState,
    TrainingTask,
    train,
)
from echostill.platform.training.measures import NonFiniteLossError
from echostill.platform.training.optimisation import parameter_groups
from echostill.platform.training.staging import StagedImages

ALONE = TrainingWorker()


class Toy(TrainingTask):
    image_size = 8

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 64, 4)
        self.seen = []

    def forward(self, batch: TrainingBatch, prepared=None):
        self.seen += batch.image_ids
        per_image = self.linear(batch.pixels.flatten(1)).square().mean(dim=1)
        detached = per_image.detach()
        return per_image.mean(), {"value": detached.mean(), "each": detached}

    def summarise(self, images, groups, totals):
        totals.add(f"first organ/{groups['organ'][0]}", images["each"][:1])
        return {"spread": float(images["each"].std(unbiased=False))}


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (11, 1, 10, 10), dtype=np.uint8)
    return StagedImages(pixels, [f"image-{i}" for i in range(11)], ["liver"] * 8 + ["lung"] * 3)


SETTINGS = TrainingSettings(steps=9, batch_size=4, learning_rate=1.0, checkpoints=3, log_every=2)


def run(images, settings=SETTINGS, state=None, task=None, keep=None, **options):
    task = task or Toy()
    state = state or TrainingState()

    def on_checkpoint(current):
        if keep is not None:
            weights = {k: v.clone() for k, v in task.state_dict().items()}
            keep[current.step] = (weights, copy.deepcopy(current))

    train(task, task, images, settings, 3, state, ALONE, on_checkpoint, **options)
    return task, state


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"ema": 0.9, "layer_decay": 0.8, "schedule": "linear"},
        {"clipping": "relative", "gradient_clip": 1.01},
        {"precision": "float16", "learning_rate": 0.1},
        {"precision": "bfloat16", "balance": "weighted", "organ_weights": {"lung": 3.0}},
    ],
)
def test_a_run_cut_at_a_checkpoint_ends_as_the_whole_one(images, change):
    settings = TrainingSettings(**{**SETTINGS.model_dump(), **change})
    kept = {}
    whole, state = run(images, settings, keep=kept)
    assert sorted(kept) == [3, 6, 9]
    weights, then = kept[6]
    task = Toy()
    task.load_state_dict(weights)
    buffer = io.BytesIO()
    torch.save([then.optimiser, then.average, then.scaler, then.norms], buffer)
    buffer.seek(0)
    optimiser, average, scaler, norms = torch.load(buffer, weights_only=True)
    saved = TrainingState(6, optimiser, then.history, average, scaler, then.totals, norms)
    cut, again = run(images, settings, state=saved, task=task)
    assert again.history == state.history
    assert whole.seen[24:] == cut.seen
    for name, value in whole.state_dict().items():
        assert torch.equal(value, cut.state_dict()[name])
    for name, value in (state.average or {}).items():
        assert torch.equal(value, again.average[name])


@pytest.mark.parametrize("loaders", [1, 3])
def test_threads_that_make_batches_ahead_change_nothing(images, loaders):
    alone, state = run(images)
    ahead, again = run(images, SETTINGS.model_copy(update={"loaders": loaders}))
    assert ahead.seen == alone.seen
    assert again.history == state.history
    for name, value in alone.state_dict().items():
        assert torch.equal(value, ahead.state_dict()[name])


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_parts_of_a_batch_add_up_to_it(images, micro_batch):
    whole, state = run(images)
    settings = SETTINGS.model_copy(update={"micro_batch": micro_batch})
    parted, again = run(images, settings)
    assert parted.seen == whole.seen
    for one, other in zip(state.history, again.history, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    torch.testing.assert_close(parted.linear.weight, whole.linear.weight)


def test_what_belongs_to_images_is_logged_for_the_whole_batch(images):
    _, state = run(images, SETTINGS.model_copy(update={"log_every": 1}))
    first = Toy()
    batch = make_batch(images, SETTINGS, 3, 8, 0, ALONE)
    _, values = first(batch)
    assert state.history[0]["spread"] == pytest.approx(values["each"].std(unbiased=False).item())
    assert state.history[0]["value"] == pytest.approx(values["each"].mean().item())
    counted = {name: count for name, (count, _) in state.totals.items()}
    assert sum(counted.values()) == 9
    assert set(counted) <= {"first organ/liver", "first organ/lung"}
    assert state.history[-1]["first organ/liver"] == state.totals.means()["first organ/liver"]


def test_averaged_weights_are_the_exponential_average(images):
    settings = SETTINGS.model_copy(update={"ema": 0.9, "checkpoints": 9})
    kept = {}
    run(images, settings, keep=kept)
    expected = Toy().linear.bias.detach().double()
    for step in range(1, 10):
        weights, state = kept[step]
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights["linear.bias"].double()
        torch.testing.assert_close(state.average["linear.bias"].double(), expected)


def test_layer_decay_scales_the_rate_by_depth():
    task = nn.ModuleDict({"encoder": create_encoder("tinyusfm-micro"), "head": nn.Linear(64, 2)})
    scale = {}
    for group in parameter_groups(task, 0.1, 0.5):
        for parameter in group["params"]:
            scale[parameter] = group["scale"]
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    named = {name: scale[parameter] for name, parameter in task.named_parameters()}
    assert named["head.weight"] == 1
    assert named["encoder.backbone.blocks.5.mlp.fc1.weight"] == 0.5
    assert named["encoder.backbone.blocks.0.attn.qkv.bias"] == 0.5**6
    assert named["encoder.backbone.patch_embed.proj.weight"] == 0.5**7
    assert named["encoder.backbone.cls_token"] == 0.5**7
    whole = parameter_groups(task, 0.1)
    assert [group["scale"] for group in whole] == [1.0, 1.0]
    assert sum(len(group["params"]) for group in whole) == len(scale)


def test_a_run_that_is_about_to_lose_a_node_saves_once(images):
    asked = []

    def leaving():
        asked.append(True)
        return len(asked) >= 2

    kept = {}
    _, state = run(images, keep=kept, leaving=leaving)
    assert sorted(kept) == [2, 3, 6, 9]  # logged steps are 1, 2, 3 (a checkpoint), 4, ...
    assert state.history == run(images)[1].history


def test_a_view_can_be_made_again(images):
    seen = make_batch(images, SETTINGS, 3, 8, 6, ALONE)
    made = replay(images, SETTINGS, 3, 8, seen.image_ids[2:], seen.epochs[2:])
    assert torch.equal(made.pixels, seen.pixels[2:])
    assert not torch.equal(
        replay(images, SETTINGS, 3, 8, seen.image_ids[2:], seen.epochs[2:] + 1).pixels, made.pixels
    )
    with pytest.raises(UsageError, match="Did you mean 'image-1'"):
        replay(images, SETTINGS, 3, 8, ["imaje-1"], [0])


def test_views_that_repeat_are_those_of_the_view_seed(images):
    settings = TrainingSettings(**{**SETTINGS.model_dump(), "views_per_image": 2, "view_seed": 5})
    seen = {}
    for seed in (3, 4):
        for step in range(12):
            batch = make_batch(images, settings, seed, 8, step, ALONE)
            for image_id, view, pixels in zip(
                batch.image_ids, batch.epochs, batch.pixels, strict=True
            ):
                assert torch.equal(seen.setdefault((image_id, int(view)), pixels), pixels)
            again = replay(images, settings, seed, 8, batch.image_ids, batch.epochs)
            assert torch.equal(again.pixels, batch.pixels)
    assert {view for _, view in seen} == {0, 1}
    assert len(seen) == 2 * len(images)
    orders = [make_batch(images, settings, seed, 8, 0, ALONE).image_ids for seed in (3, 4)]
    assert orders[0] != orders[1]  # the order is the run's own
    plain = make_batch(images, SETTINGS, 5, 8, 0, ALONE)  # and the views those of that seed
    for image_id, pixels in zip(plain.image_ids, plain.pixels, strict=True):
        assert torch.equal(seen[image_id, 0], pixels)


def test_two_workers_see_together_what_one_sees(images):
    whole = make_batch(images, SETTINGS, 1, 8, 5, ALONE)
    shares = [make_batch(images, SETTINGS, 1, 8, 5, TrainingWorker(rank, 2)) for rank in range(2)]
    ids = [None] * 4
    ids[0::2], ids[1::2] = shares[0].image_ids, shares[1].image_ids
    assert ids == whole.image_ids
    pixels = torch.empty_like(whole.pixels)
    pixels[0::2], pixels[1::2] = shares[0].pixels, shares[1].pixels
    assert torch.equal(pixels, whole.pixels)


class Broken(Toy):
    """Gives a broken value at one step, of the loss or of the gradient alone."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.calls = kind, 0

    def forward(self, batch, prepared=None):
        loss, metrics = super().forward(batch)
        self.calls += 1
        if self.calls != 5:
            return loss, metrics
        if self.kind == "gradient":  # finite, with an infinite slope
            return loss + (self.linear.weight * 0).square().sum().sqrt(), metrics
        return loss * float(self.kind), metrics


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_a_loss_that_is_no_number_stops_and_names_the_images(images, kind):
    task = Broken(kind)
    with pytest.raises(NonFiniteLossError, match=r"step 5; images of that batch: image-") as caught:
        run(images, task=task)
    batch = pickle.loads(pickle.dumps(caught.value)).batch
    drawn = make_batch(images, SETTINGS, 3, 8, 4, ALONE)
    assert batch["image_ids"] == drawn.image_ids
    assert batch["epochs"] == drawn.epochs.tolist()
    assert (batch["step"], batch["seed"]) == (5, 3)
    assert torch.equal(replay(images, SETTINGS, 3, 8, batch["image_ids"], batch["epochs"]).pixels,
                       drawn.pixels)  # fmt: skip
    assert torch.isfinite(task.linear.weight).all()  # the broken step was not taken


def test_settings_that_leave_a_worker_without_images_are_refused():
    for change, words in (
        ({"workers": 5}, "without an image"),
        ({"workers": (2, 1)}, "at least 1"),
        ({"workers": 2, "sharding": "full", "ema": 0.9}, "averages whole weights"),
        ({"organ_weights": {"lung": 2.0}}, "for balance"),
        ({"balance": "weighted", "organ_weights": {"lung": -2.0}}, "negative"),
    ):
        with pytest.raises(ValidationError, match=words):
            TrainingSettings(batch_size=4, **change)
    assert TrainingSettings(workers=(1, 3)).worker_range == (1, 3)


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
        i for step in range(11) for i in make_batch(images, settings, 1, 8, step, ALONE).image_ids
    ]
    lung = sum(int(name.rpartition("-")[2]) >= 8 for name in ids)
    assert len(ids) == 44
    assert abs(lung - 22) <= 2
