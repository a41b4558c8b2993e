"""Images on their way to a device, as bytes, and results on their way back, without waiting.

A copy to a GPU runs beside the work only from memory that is pinned (page-locked). A result is read
late: the copy back is begun, and whoever needs the numbers waits for it when the next batch is on
its way already. On a CPU nothing is copied.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def staged(images: np.ndarray, device: torch.device) -> Tensor:
    """Bring a batch of images into memory that a device can copy from; called in loader threads.

    Args:
        images: (N, C, S, S) uint8; may be read-only.
        device: Where they will go.

    Returns:
        The same bytes, pinned for a GPU.
    """
    if device.type == "cpu" and images.flags.writeable:
        return torch.from_numpy(images)
    target = torch.empty(images.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target.numpy()[...] = images
    return target


def unit_pixels(images: Tensor, device: torch.device | str) -> Tensor:
    """Copy images to a device and bring them to [0, 1] there: a quarter of the bytes travel.

    Args:
        images: (N, C, S, S) uint8 with one channel or three.
        device: Where pixels are wanted.

    Returns:
        (N, 3, S, S) float32 in [0, 1]; a grey image has its channel three times. On CPUs this is
        exactly ``float32(value) / 255``; a GPU multiplies by the reciprocal, one rounding away.
    """
    moved = images.to(device, non_blocking=True)
    return (moved.float() / 255).expand(-1, 3, -1, -1).contiguous()


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to a device; to a GPU from pinned memory, beside its work."""
    device = torch.device(device)
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


@dataclass(frozen=True)
class Returning:
    """A result on its way back from a device."""

    values: Tensor
    arrived: torch.cuda.Event | None

    def tensor(self) -> Tensor:
        """Wait until it is here, not for what was given to the device since, and return it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values

    def numpy(self) -> np.ndarray:
        """Return it as an array, when it is here."""
        found: np.ndarray = self.tensor().numpy()
        return found


def fetch(values: Tensor) -> Returning:
    """Begin to copy a result back; a GPU's goes to pinned memory."""
    if values.device.type != "cuda":
        return Returning(values.cpu(), None)
    copied = values.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return Returning(copied, arrived)
