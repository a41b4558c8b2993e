"""Bytes on a device are the pixels of the CPU; results come back as they were."""

import numpy as np
import pytest
import torch

from echostill.platform.computing.transfer import fetch, staged, unit_pixels

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_on_a_device_are_those_of_numpy(device, channels):
    images = np.random.default_rng(0).integers(0, 256, (1000, channels, 8, 8), dtype=np.uint8)
    images[0].flat[:256] = np.arange(images[0].size)[:256]
    images.flags.writeable = False  # as it comes from another process
    on_device = torch.device(device)
    pixels = unit_pixels(staged(images, on_device), on_device)
    assert pixels.device.type == device
    expected = np.broadcast_to(images.astype(np.float32) / 255, (1000, 3, 8, 8))
    found = fetch(pixels).numpy()
    if device == "cpu":
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert pixels.is_contiguous()


def test_a_batch_is_not_copied_on_a_cpu_and_a_read_only_one_is_not_written():
    images = np.zeros((2, 1, 4, 4), np.uint8)
    same = staged(images, torch.device("cpu"))
    assert same.data_ptr() == images.ctypes.data
    images.flags.writeable = False
    other = staged(images, torch.device("cpu"))
    other[:] = 7
    assert not images.any()
