"""Numbers of steps that are read late, as on a GPU."""

import numpy as np
import pytest
import torch
from torch import nn

from echostill.platform.computing.precision import computing_type
from echostill.platform.errors import UsageError
from echostill.platform.training import optimisation
from echostill.platform.training.batches import TrainingBatch
from echostill.platform.training.collective import TrainingWorker
from echostill.platform.training.loop import TrainingState, TrainingTask, train
from echostill.platform.training.measures import NonFiniteLossError
from echostill.platform.training.settings import TrainingSettings
from echostill.platform.training.staging import StagedImages

SETTINGS = TrainingSettings(steps=9, batch_size=4, learning_rate=1.0, checkpoints=3, log_every=2)


class Line(TrainingTask):
    image_size = 8

    def __init__(self, broken_step=None):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 64, 4)
        self.broken_step, self.steps = broken_step, []

    def forward(self, batch: TrainingBatch, prepared=None):
        self.steps.append(batch.step)
        each = self.linear(batch.pixels.flatten(1)).square().mean(dim=1)
        loss = each.mean() * (float("nan") if batch.step == self.broken_step else 1.0)
        return loss, {"value": each.detach().mean(), "each": each.detach()}

    def summarise(self, images, groups, totals):
        totals.add("each", images["each"])
        return {"spread": float(images["each"].std(unbiased=False))}


def run(task, late, settings=SETTINGS):
    pixels = np.random.default_rng(0).integers(0, 255, (11, 1, 10, 10), dtype=np.uint8)
    images = StagedImages(pixels, [f"image-{i}" for i in range(11)], ["liver"] * 11)
    state, kept, logged = TrainingState(), {}, []

    def keep(current):
        kept[current.step] = [value.clone() for value in task.state_dict().values()]
        kept[current.step] += [len(current.history), dict(current.norms)]

    train(
        task, task, images, settings, 3, state, TrainingWorker(), keep,
        late=late, on_logged=logged.append,
    )  # fmt: skip
    return state, kept, logged


@pytest.mark.parametrize("change", [{}, {"clipping": "relative", "gradient_clip": 1.01}])
@pytest.mark.parametrize("late", [1, 3])
def test_a_run_read_late_is_that_read_at_once(late, change):
    settings = SETTINGS.model_copy(update=change)
    (at_once, kept, logged), (later, kept_later, _) = (
        run(Line(), steps, settings) for steps in (0, late)
    )
    assert later.history == at_once.history
    assert [row["step"] for row in later.history] == logged == [1, 2, 3, 4, 6, 8, 9]
    assert later.totals == at_once.totals
    assert kept.keys() == kept_later.keys() == {3, 6, 9}
    for step, values in kept.items():
        for one, other in zip(values, kept_later[step], strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("late", [1, 2])
@pytest.mark.parametrize("broken", [4, 5, 8])  # of checkpoints after 3, 6 and 9 steps
def test_a_broken_step_is_named_and_never_kept(late, broken):
    task = Line(broken)
    with pytest.raises(NonFiniteLossError, match=f"the loss became nan at step {broken + 1};"):
        run(task, late)
    assert max(task.steps) <= broken + late  # it was read late, and before the next checkpoint
    assert max(task.steps) < min(stop for stop in (6, 9) if stop > broken)


def test_nothing_is_kept_of_a_broken_step():
    kept = {}
    task = Line(5)
    state = TrainingState()
    pixels = np.zeros((4, 1, 10, 10), dtype=np.uint8)
    images = StagedImages(pixels, list("abcd"), [""] * 4)

    def keep(current):
        kept[current.step] = current.step

    with pytest.raises(NonFiniteLossError) as caught:
        train(task, task, images, SETTINGS, 3, state, TrainingWorker(), keep, late=4)
    assert set(kept) == {3}
    assert state.step == 5  # steps that were sound
    assert caught.value.batch["step"] == 6


def test_the_type_of_products_follows_the_gpu_and_is_noted(monkeypatch):
    gpu = torch.device("cuda")
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda there=there, **_: there)
        best = torch.bfloat16 if there else torch.float16
        assert computing_type("auto", gpu) == best
        assert computing_type("float32", gpu) == torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an old GPU")
    with pytest.raises(UsageError, match="an old GPU has no bfloat16: use"):
        computing_type("bfloat16", gpu)
    assert computing_type("auto", torch.device("cpu")) == torch.float32
    state, _, _ = run(Line(), 0)
    assert state.precisions == [(0, "float32")]
    state.computes_in("float32")
    state.computes_in("bfloat16")
    assert state.precisions == [(0, "float32"), (9, "bfloat16")]


def test_a_checkpoint_of_either_device_fits_the_other():
    saved = None
    for device in (torch.device("cuda"), torch.device("cpu"), torch.device("cuda")):
        parameter = nn.Parameter(torch.ones(3))
        groups = [{"params": [parameter]}]
        optimiser = optimisation.make_optimiser(groups, (0.9, 0.95), device, saved)
        assert optimiser.param_groups[0]["fused"] == (device.type == "cuda" or None)
        parameter.grad = torch.ones(3)
        optimiser.step()
        saved = optimiser.state_dict()
    assert float(saved["state"][0]["step"]) == 3
