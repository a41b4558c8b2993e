"""A small network that says of each 4 x 4 pixels whether they belong to lettering.

Its weights and activations are whole numbers of 8 bits, and no sum of their products reaches 2^24:
float32 holds every intermediate exactly, so that any processor and any number of threads give the
same answer to the last bit. ``benchmarks/fit_text_finder.py`` fits it and writes its weights.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib import resources

import numpy as np
from scipy.linalg.blas import sgemm

from echostill.curation.deidentification.filters import grow

CELL = 4  # pixels along each side of what one answer is for
_MARGIN = 4  # zeros around what a layer sees: the widest reach of one
_LARGEST = 255  # of an activation
_ROWS = 16  # that are computed at once: what they take stays in a processor's cache
_GAP = 8  # columns without a change between others, up to which these are computed together

Tile = tuple[int, int, int, int]


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

    @property
    def reach(self) -> int:
        """How far from the middle of its kernel it sees, in pixels or cells."""
        return self.dilation * int(self.weight.shape[2] // 2)

    @property
    def around(self) -> int:
        """The same in its answers."""
        return -(-self.reach // self.stride)

    @cached_property
    def taps(self) -> list[tuple[int, int, int, np.ndarray]]:
        """What is added up: every so many-th row, moved down and right by so much, times a matrix.

        With a stride, the columns that it steps over are channels of one.
        """
        out, channels, size, _ = self.weight.shape
        found: dict[tuple[int, int, int], np.ndarray] = {}
        for y in range(size):
            down, phase = divmod(y * self.dilation - self.reach, self.stride)
            for x in range(size):
                right, place = divmod(x * self.dilation - self.reach, self.stride)
                empty = np.zeros((out, self.stride * channels), dtype=np.float32, order="F")
                weight = found.setdefault((phase, down, right), empty)
                weight[:, place * channels : (place + 1) * channels] = self.weight[:, :, y, x]
        return [(*key, weight) for key, weight in found.items()]


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


def text_logits(value: np.ndarray, last: "LastPicture | None" = None) -> np.ndarray:
    """Ask the network.

    Args:
        value: uint8 (H, W), H and W at least 1.
        last: The picture before: the answer is the same, but only what differs is computed.

    Returns:
        (ceil(H / 4), ceil(W / 4)) float32: log-odds of lettering in each cell.
    """
    if value.dtype != np.uint8:
        raise TypeError(f"a picture of {value.dtype}: expected uint8")
    cells = (LastPicture() if last is None else last).activations_of(value)
    layer = _layers()[-1]
    logits = cells.astype(np.float32) @ layer.weight[0, :, 0, 0]
    found: np.ndarray = logits * layer.scale[0] + layer.offset[0]
    return found


class LastPicture:
    """What each layer but the last gave for the last picture of a cine.

    An answer depends on what its layer reaches: where that is what it was, so is the answer, to the
    last bit. A scanner's screen around the sector seldom changes, and the first picture is compared
    with an even one. Held are about 13 bytes for each pixel of one picture.
    """

    def __init__(self) -> None:
        self._layers: list[np.ndarray] | None = None
        self._scratch = _Scratch()

    def activations_of(self, value: np.ndarray) -> np.ndarray:
        """Return what the last layer but one gives for a picture, uint8 (rows, columns, channels).

        It is overwritten when the next picture comes.
        """
        held = self._layers
        self._layers = None  # until all of it is of this picture: an error leaves nothing wrong
        if held is None or _inside(held[0]).shape[:2] != value.shape:
            held, changed = _begin(value)
        else:
            changed = value != _inside(held[0])[..., 0]
        _inside(held[0])[..., 0] = value
        for layer, seen, answers in zip(_layers(), held, held[1:], strict=False):
            changed = _reached(changed, layer)
            _answer(seen, layer, _tiles(changed), _inside(answers), self._scratch)
        self._layers = held
        return _inside(held[-1])


class _Scratch:
    """Memory for what is forgotten at once: the system gives out new memory slowly."""

    def __init__(self) -> None:
        self._held = np.empty(0, dtype=np.float32)

    def parts(self, *shapes: tuple[int, ...]) -> list[np.ndarray]:
        """Return float32 arrays, filled with whatever; valid until the next call."""
        if self._held.size < sum(map(math.prod, shapes)):
            self._held = np.empty(sum(map(math.prod, shapes)), dtype=np.float32)
        return _split(self._held, shapes)


def _split(memory: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Return arrays that lie in one, one behind the other."""
    ends = [0, *itertools.accumulate(map(math.prod, shapes))]
    return [
        memory[begin:end].reshape(shape)
        for (begin, end), shape in zip(itertools.pairwise(ends), shapes, strict=True)
    ]


def _begin(value: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return layers to start from, and where the picture differs from theirs, (H, W) bool.

    They are those of a picture that has everywhere what this one has most of at its edges, put
    together from a small one's: an answer depends on how far an edge is, up to the reach of all
    layers, and on what is left of a side when it is divided into cells.
    """
    held = _unfilled(value.shape)
    edge = _reach() + 1
    least = CELL * (2 * edge + 1)
    if min(value.shape) < least + CELL:
        return held, np.ones(value.shape, dtype=bool)
    rim = np.concatenate([value[0], value[-1], value[:, 0], value[:, -1]])
    level = int(np.bincount(rim).argmax())
    height, width = (least + side % CELL for side in value.shape)
    for small, large in zip(_even(level, height, width), held, strict=True):
        _spread(_inside(small), _inside(large), edge)
    return held, value != level


@lru_cache(maxsize=32)
def _even(level: int, height: int, width: int) -> list[np.ndarray]:
    """Return the layers of a small picture of one grey level."""
    picture = LastPicture()
    picture.activations_of(np.full((height, width), level, dtype=np.uint8))
    assert picture._layers is not None
    return picture._layers


def _spread(small: np.ndarray, large: np.ndarray, edge: int) -> None:
    """Fill a layer with a smaller one's edges, and with its middle again and again."""
    middle = np.repeat(small[:, edge : edge + 1], large.shape[1] - 2 * edge, axis=1)
    wide = np.concatenate([small[:, :edge], middle, small[:, -edge:]], axis=1)
    # As lines of numbers: numpy repeats those far quicker than rows of cells.
    lines, wide = large.reshape(len(large), -1), wide.reshape(len(wide), -1)
    lines[:edge], lines[edge:-edge], lines[-edge:] = wide[:edge], wide[edge], wide[-edge:]


def _reach() -> int:
    """Return from how many cells away something may change an answer."""
    pixels, side = 0, 1
    for layer in _layers():
        pixels += layer.reach * side
        side *= layer.stride
    return -(-pixels // CELL)


def _unfilled(size: tuple[int, ...]) -> list[np.ndarray]:
    """Return a picture and its layers, uint8 (rows, columns, channels) with margins, of zeros."""
    shapes, channels = [], 1
    for layer in _layers():
        shapes.append((*(side + 2 * _MARGIN for side in size), channels))
        channels, size = len(layer.weight), tuple(-(-side // layer.stride) for side in size)
    return _split(np.zeros(sum(map(math.prod, shapes)), dtype=np.uint8), shapes)


def _inside(values: np.ndarray) -> np.ndarray:
    return values[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


def _reached(changed: np.ndarray, layer: _Layer) -> np.ndarray:
    """Return where a layer's answers may differ, given where what it sees does."""
    step = layer.stride
    for _ in (0, 1) if step > 1 else ():
        lines = changed[::step].copy()
        for offset in range(1, step):
            part = changed[offset::step]
            lines[: len(part)] |= part
        changed = lines.T
    return grow(changed.view(np.uint8), 2 * layer.around + 1).view(bool)


def _tiles(changed: np.ndarray) -> list[Tile]:
    """Return rectangles that cover what may differ: top, bottom, left, right, half-open."""
    rows = np.flatnonzero(changed.any(axis=1)).tolist()
    if not rows:
        return []
    first, end = rows[0], rows[-1] + 1
    bands = -(-(end - first) // _ROWS)
    edges = [first + (end - first) * band // bands for band in range(bands + 1)]
    tiles = []
    for top, bottom in itertools.pairwise(edges):
        columns = np.flatnonzero(changed[top:bottom].any(axis=0))
        if len(columns):
            gaps = (columns[1:] - columns[:-1] > _GAP).nonzero()[0]
            begins, ends = columns[[0, *(gaps + 1)]], columns[[*gaps, -1]] + 1
            for left, right in zip(begins.tolist(), ends.tolist(), strict=True):
                tiles.append((top, bottom, left, right))
    return tiles


def _answer(
    seen: np.ndarray,
    layer: _Layer,
    tiles: Sequence[Tile],
    answers: np.ndarray,
    scratch: _Scratch,
) -> None:
    """Compute rectangles of a layer's answers."""
    widest = max((right - left for _, _, left, right in tiles), default=0) + 2 * layer.around
    scale, offset = np.tile(layer.scale, widest), np.tile(layer.offset, widest)
    convolve = _convolve_pixels if seen.shape[2] == 1 else _convolve_cells
    for tile in tiles:
        top, bottom, left, right = tile
        sums = convolve(seen, layer, tile, scratch)
        _activate(sums, scale, offset)
        answers[top:bottom, left:right] = sums[:, : right - left]


def _convolve_pixels(seen: np.ndarray, layer: _Layer, tile: Tile, scratch: _Scratch) -> np.ndarray:
    """Return a rectangle of sums over one channel: (rows, columns, channels).

    One product for all taps: one for each would multiply little and add up much.
    """
    top, bottom, left, right = tile
    rows, columns, step, size = bottom - top, right - left, layer.stride, layer.weight.shape[2]
    channels = len(layer.weight)
    first, start = (_MARGIN + step * side - layer.reach for side in (top, left))
    part = seen[first : first + rows * step + size, start : start + columns * step + size, 0]
    phases = [part[:, phase::step].copy() for phase in range(step)]
    taps, sums = scratch.parts((size, size, rows, columns), (rows, columns, channels))
    for y in range(size):
        for x in range(size):
            skipped, phase = divmod(x, step)
            taps[y, x] = phases[phase][y : y + rows * step : step, skipped : skipped + columns]
    pixels, weight = taps.reshape(size * size, -1).T, layer.weight.reshape(channels, -1).T
    np.matmul(pixels, weight, out=sums.reshape(-1, channels))
    return sums


def _convolve_cells(seen: np.ndarray, layer: _Layer, tile: Tile, scratch: _Scratch) -> np.ndarray:
    """Return a rectangle of sums: (rows, columns and some that mean nothing, channels).

    Its rows, with what is around them, lie end to end, so that a shifted picture is one piece of
    memory; columns that a stride steps over are channels of one.
    """
    top, bottom, left, right = tile
    step, around, channels = layer.stride, layer.around, seen.shape[2] * layer.stride
    rows, row = bottom - top, right - left + 2 * around
    first, start = (_MARGIN + step * (side - around) for side in (top, left))
    part = seen[first : first + step * (rows + 2 * around), start : start + step * row]
    shapes = [((rows + 2 * around + 1) * row, channels)] * step
    *phases, sums = scratch.parts(*shapes, (rows * row, len(layer.weight)))
    for phase, lines in enumerate(phases):
        lines[:-row].reshape(-1, row * channels)[:] = part[phase::step].reshape(-1, row * channels)
        lines[-row:] = 0
    for number, (phase, down, beside, weight) in enumerate(layer.taps):
        begin = (around + down) * row + around + beside
        shifted = phases[phase][begin : begin + len(sums)]
        beta = float(number > 0)  # the first one is set, the others are added
        sums = sgemm(1.0, weight, shifted.T, beta=beta, c=sums.T, overwrite_c=True).T
    return sums.reshape(rows, row, -1)


def _activate(sums: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> None:
    """Turn sums (rows, columns, channels) into whole numbers 0..255, in place.

    Scale and offset are those of a layer's channels, again and again.
    """
    flat = sums.reshape(len(sums), -1)
    np.multiply(flat, scale[: flat.shape[1]], out=flat)
    np.add(flat, offset[: flat.shape[1]], out=flat)
    np.rint(flat, out=flat)
    np.clip(flat, 0, _LARGEST, out=flat)
