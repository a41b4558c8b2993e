"""Batches on their way to the device: cut there or on the CPU, read ahead by one thread or many."""

import threading
import time

import numpy as np
import pytest
import torch

from echostill.platform.masking.masks import MaskSettings, choose_masks
from echostill.platform.training import batches
from echostill.platform.training.batches import (
    LOADERS,
    Pace,
    Waiting,
    cut,
    cuts_on_device,
    loader_threads,
    make_batch,
    prefetch,
)
from echostill.platform.training.collective import TrainingWorker
from echostill.platform.training.settings import TrainingSettings
from echostill.platform.training.staging import StagedImages, staged_side

ALONE, CPU, GPU = TrainingWorker(), torch.device("cpu"), torch.device("cuda")


def staged(count, size, channels=1):
    """Noise, whose neighbours differ as much as pixels can: the hardest to resample alike."""
    side = staged_side(size)
    pixels = np.random.default_rng(0).integers(0, 256, (count, channels, side, side), np.uint8)
    return StagedImages(pixels, [f"image-{row}" for row in range(count)], ["liver"] * count)


@pytest.mark.parametrize(("size", "channels", "views"), [(112, 1, 800), (32, 3, 200)])
def test_crops_cut_on_the_device_are_those_of_the_cpu(size, channels, views):
    images = staged(50, size, channels)
    settings = TrainingSettings(batch_size=views // 4, views_per_image=None)
    on_device = settings.model_copy(update={"crops_on": "device"})
    for step in range(4):
        known = make_batch(images, settings, 1, size, step, ALONE)
        whole = make_batch(images, on_device, 1, size, step, ALONE)
        assert whole.pixels.dtype == torch.uint8
        assert whole.image_ids == known.image_ids
        found = whole.to(CPU)
        assert found.crops is None
        assert found.pixels.shape == known.pixels.shape == (views // 4, 3, size, size)
        assert (found.pixels - known.pixels).abs().max() < 1e-6
        parts = [part.to(CPU) for part in cut(whole, 3)]
        assert torch.equal(torch.cat([part.pixels for part in parts]), found.pixels)
    plain = known.to(CPU)
    assert torch.equal(plain.pixels, known.pixels)


def test_masks_travel_with_their_images():
    images = staged(6, 32)
    settings = TrainingSettings(batch_size=6, crops_on="device")
    batch = make_batch(images, settings, 1, 32, 0, ALONE)
    masks = MaskSettings().scaled_to(32, 16)
    batch.draws = choose_masks(masks, 3, batch.epochs, batch.image_ids)
    moved = batch.to(CPU)
    first, second = cut(moved, 2)
    for part, rows in ((first, slice(0, 3)), (second, slice(3, 6))):
        own = choose_masks(masks, 3, batch.epochs[rows], batch.image_ids[rows])
        assert torch.equal(part.draws.blocks, own.blocks)
        assert torch.equal(part.draws.bands, own.bands)


def test_gpus_get_whole_images_from_several_threads():
    settings = TrainingSettings()
    assert not cuts_on_device(settings, CPU)
    assert cuts_on_device(settings, GPU)
    assert not cuts_on_device(settings.model_copy(update={"crops_on": "cpu"}), GPU)
    assert loader_threads(settings, CPU) == 0
    assert 1 <= loader_threads(settings, GPU) <= LOADERS
    assert loader_threads(settings.model_copy(update={"loaders": 3}), CPU) == 3


def test_several_threads_make_batches_at_once_and_give_them_in_order():
    together = threading.Barrier(3, timeout=30)  # breaks unless three are in the making

    def make(step):
        together.wait()
        return step

    assert list(prefetch(make, range(9), threads=3)) == list(range(9))


def test_without_a_thread_each_batch_is_made_when_it_is_asked_for(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 13.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    made, waiting = [], Waiting()
    given = prefetch(lambda step: made.append(step) or step, range(5, 7), 2, waiting, threads=0)
    assert next(given) == 5
    assert made == [5]
    assert list(given) == [6]
    assert waiting.seconds == 5.0  # the making itself: nothing else computed meanwhile


def test_a_run_that_waits_for_images_is_told_which_key_to_turn(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(batches, "loader_threads", lambda settings, device: 4)
    pace = Pace(TrainingSettings(batch_size=64), CPU, 5)  # at 0 s
    assert pace.note(10, every=15) is None  # at 10 s
    pace.waiting.seconds = 1.0
    assert pace.note(55) == "160 images/s, 5% of the time waiting for images"  # at 20 s
    pace.waiting.seconds = 6.0
    said = pace.note(65)  # at 30 s
    assert "50% of the time waiting" in said
    assert "raise training.loaders (now 4)" in said
    assert "ECHOSTILL_CACHE" in said
    assert pace.so_far(65) == {"images_per_second": 60 * 64 / 40, "data_wait_share": 6 / 40}
