"""Cost of a model: parameters, operations, latency, throughput."""

from __future__ import annotations

import os
import platform
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from echostill.platform.models import complexity

if TYPE_CHECKING:
    from echostill.platform.models import Encoder


def efficiency(
    encoder: Encoder,
    *,
    batch_size: int = 8,
    repeats: int = 15,
    warmup: int = 3,
    device: torch.device | str = "cpu",
) -> dict[str, float | int | str]:
    """Count a model's parameters and operations, and time it in float32.

    Args:
        encoder: The model, without a head.
        batch_size: Images per batch for the throughput.
        repeats: Timed runs; the median is reported.
        warmup: Runs before these, which are not timed.
        device: Where to time it.

    Returns:
        ``parameters``; ``gflops`` (2 x multiply-adds, everything) and ``gflops_paper`` (without the
        attention products, as the TinyUSFM paper counts), both for one image; ``latency_ms`` (one
        image); ``images_per_second`` (at ``batch_size``); ``image_size``, ``threads``, ``device``.
    """
    chosen = torch.device(device)
    encoder = encoder.to(chosen).eval()
    single = _median_seconds(encoder, 1, repeats, warmup, chosen)
    many = _median_seconds(encoder, batch_size, repeats, warmup, chosen)
    return {
        "parameters": complexity.parameters(encoder),
        "gflops": complexity.gflops(encoder),
        "gflops_paper": complexity.gflops_paper(encoder),
        "latency_ms": single * 1e3,
        "images_per_second": batch_size / many,
        "batch_size": batch_size,
        "image_size": encoder.image_size,
        "threads": torch.get_num_threads(),
        "device": device_name(chosen),
    }


def device_name(device: torch.device) -> str:
    """Return the name of a device, as far as the system provides one."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


@torch.inference_mode()
def _median_seconds(
    encoder: Encoder, batch_size: int, repeats: int, warmup: int, device: torch.device
) -> float:
    side = encoder.image_size
    pixels: Tensor = torch.full((batch_size, 3, side, side), 0.5, device=device)
    seconds = []
    for run in range(warmup + repeats):
        _wait(device)
        start = time.perf_counter()
        encoder(pixels)
        _wait(device)
        if run >= warmup:
            seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
