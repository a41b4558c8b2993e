"""A small network that says of each 4 x 4 pixels whether they belong to lettering.

Its weights and activations are whole numbers of 8 bits, and no sum of their products reaches 2^24:
float32 holds every intermediate exactly, so that any processor and any number of threads give the
same answer to the last bit. ``benchmarks/fit_text_finder.py`` fits it and writes its weights.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

CELL = 4  # pixels along each side of what one answer is for
_MARGIN = 4  # cells of black around the picture: the widest reach of a layer
_LARGEST = 255  # of an activation


@dataclass(frozen=True)
class _Layer:
    """One convolution.

    Attributes:
        weight: (out, in, k, k) float32, whole numbers -127..127.
        scale: (out,) float32, from sums to activations (of the last layer: to logits).
        offset: (out,) float32, added after it.
        stride: Of pixels or cells.
        dilation: Of the kernel.
    """

    weight: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    stride: int
    dilation: int


@cache
def _layers() -> tuple[_Layer, ...]:
    file = resources.files(__package__ or "").joinpath("network.npz")
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as held:
        return tuple(
            _Layer(
                held[f"weight_{number}"].astype(np.float32),
                held[f"scale_{number}"],
                held[f"offset_{number}"],
                int(held["strides"][number]),
                int(held["dilations"][number]),
            )
            for number in range(len(held["strides"]))
        )


def text_logits(value: np.ndarray) -> np.ndarray:
    """Ask the network.

    Args:
        value: uint8 (H, W), H and W at least 1.

    Returns:
        (ceil(H / 4), ceil(W / 4)) float32: log-odds of lettering in each cell.
    """
    first, second, *rest, last = _layers()
    cells = _strided(value[None], first)
    cells = _strided(cells, second)
    channels, height, width = cells.shape
    # Rows end to end with a margin between them: a shifted picture is then one slice of memory.
    row = width + 2 * _MARGIN
    padded = np.zeros((channels, (height + 2 * _MARGIN) * row + 2 * _MARGIN), dtype=np.float32)
    inner = _inner(padded, height, row)
    inner[:, :, _MARGIN : _MARGIN + width] = cells
    for layer in rest:
        out = _dilated(padded, layer, height, row)
        padded = np.zeros((len(layer.weight), padded.shape[1]), dtype=np.float32)
        inner = _inner(padded, height, row)
        out = _activate(out, layer).reshape(len(out), height, row)
        inner[:, :, _MARGIN : _MARGIN + width] = out[:, :, :width]
    cells = inner[:, :, _MARGIN : _MARGIN + width].reshape(len(padded), -1)
    logits = last.weight[:, :, 0, 0] @ cells
    found: np.ndarray = logits[0] * last.scale[0] + last.offset[0]
    return found.reshape(height, width)


def _inner(padded: np.ndarray, height: int, row: int) -> np.ndarray:
    """Return a view of the rows of the picture, with the margins left and right of them."""
    start = _MARGIN * row
    return padded[:, start : start + height * row].reshape(len(padded), height, row)


def _strided(values: np.ndarray, layer: _Layer) -> np.ndarray:
    """Convolve (C, H, W) with a stride; zeros outside."""
    channels, height, width = values.shape
    size, stride = layer.weight.shape[2], layer.stride
    margin = size // 2
    padded = np.zeros((channels, height + 2 * margin, width + 2 * margin), dtype=np.float32)
    padded[:, margin : margin + height, margin : margin + width] = values
    rows, columns = -(-height // stride), -(-width // stride)
    taps = np.empty((size, size, channels, rows, columns), dtype=np.float32)
    for y in range(size):
        for x in range(size):
            taps[y, x] = padded[:, y : y + height : stride, x : x + width : stride]
    kernel = layer.weight.transpose(0, 2, 3, 1).reshape(len(layer.weight), -1)
    sums = kernel @ taps.reshape(kernel.shape[1], -1)
    return _activate(sums, layer).reshape(len(kernel), rows, columns)


def _dilated(padded: np.ndarray, layer: _Layer, height: int, row: int) -> np.ndarray:
    """Convolve a padded picture of ``height`` rows; what comes for the margins means nothing."""
    reach = layer.dilation * (layer.weight.shape[2] // 2)
    length = height * row
    start = (_MARGIN - reach) * row + _MARGIN - reach
    sums: np.ndarray | None = None
    for y in range(layer.weight.shape[2]):
        for x in range(layer.weight.shape[3]):
            begin = start + layer.dilation * (y * row + x)
            part = layer.weight[:, :, y, x] @ padded[:, begin : begin + length]
            sums = part if sums is None else np.add(sums, part, out=sums)
    assert sums is not None
    return sums


def _activate(sums: np.ndarray, layer: _Layer) -> np.ndarray:
    """Turn sums into whole numbers 0..255, in place."""
    np.multiply(sums, layer.scale[:, None], out=sums)
    np.add(sums, layer.offset[:, None], out=sums)
    np.rint(sums, out=sums)
    return np.clip(sums, 0, _LARGEST, out=sums)
