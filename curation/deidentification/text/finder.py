"""Where a picture may have lettering drawn into it, and how likely.

The text is not read. A small network (``network.py``) marks the cells that look like
lettering of any script, at several sizes; what it marks in one piece is one text. Its recall and
false alarms are measured by ``benchmarks/deidentification.py``.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.special import expit

from echostill.curation.deidentification.brightness import brightest
from echostill.curation.deidentification.flow import COLOURED, colour_of, hide_flow
from echostill.curation.deidentification.text.found import Text
from echostill.curation.deidentification.text.network import CELL, LastPicture, text_logits

_SMALLEST_SIDE = 100  # of a picture that is looked at once more at half its size
_SMALL_SIDE = 100  # of a picture that is looked at once more at twice its size
_FEWEST_PIXELS = 12  # of which three letters are drawn
_JOINED = 0.0  # log-odds from which a cell belongs to a text
_CLEAR = 2.0  # log-odds of what is a text by itself, whatever doubtful cells join it to
_REACH = 2  # cells around it whose doubtful cells are a part of it
_LEAST = 0.1  # score from which a text is worth telling of
_CORE = 5  # cells of a text, the likeliest ones, that its score is the mean of
_SURE = 0.98  # score of a text whose coarser likeness is not told, whatever that one's score
_AROUND = np.ones((3, 3), dtype=bool)


Finder = Callable[[np.ndarray], list[Text]]


def finder(name: Literal["own", "both"]) -> Finder:
    """Return what looks for text in the frames of one file: the own finder, or it and RapidOCR's.

    Raises:
        UsageError: RapidOCR is not installed.
    """
    own = OwnFinder()
    if name == "own":
        return own
    from echostill.curation.deidentification.text.ocr import find_text_by_ocr

    return lambda frame: [*own(frame), *find_text_by_ocr(frame)]


class OwnFinder:
    """Finds text in frame after frame of one file.

    What it finds in a frame does not depend on the frames before: these save it work, where they
    show the same.
    """

    def __init__(self) -> None:
        # Of each picture that is made of a frame: by what it shows, and its scale.
        self._last: defaultdict[tuple[str, float], LastPicture] = defaultdict(LastPicture)

    def __call__(self, frame: np.ndarray) -> list[Text]:
        """Find what may be lettering, as :func:`find_text` does."""
        if frame.ndim == 3:
            frame = hide_flow(frame)
        found = self._at_scales("brightness", brightest(frame))
        if frame.ndim == 3:
            # Coloured lettering on grey tissue is as bright as it, and alone in its colour.
            colour = colour_of(frame)
            if np.count_nonzero(colour >= COLOURED) >= _FEWEST_PIXELS:
                found += self._at_scales("colour", colour)
        return sorted(set(found), key=lambda text: (-text.score, text.box))

    def _at_scales(self, shown: str, value: np.ndarray) -> list[Text]:
        shape = value.shape
        found: list[Text] = []
        if max(shape) <= _SMALL_SIDE:
            # A picture this small has been shrunk, and its letters with it.
            logits = text_logits(_double(value), self._last[shown, 0.5])
            found += _texts(logits, 0.5, shape)
        scale = 1
        while scale == 1 or (scale <= 4 and min(value.shape) >= _SMALLEST_SIDE):
            found += _texts(text_logits(value, self._last[shown, scale]), scale, shape, found)
            value, scale = _halve(value), scale * 2
        return found


def find_text(frame: np.ndarray) -> list[Text]:
    """Find what may be lettering in one frame, the likeliest first.

    Args:
        frame: uint8 (H, W) or (H, W, 3).
    """
    return OwnFinder()(frame)


def _texts(
    logits: np.ndarray, scale: float, shape: tuple[int, ...], finer: Sequence[Text] = ()
) -> list[Text]:
    """Find texts at one scale, but for what was found at a finer one."""
    texts = []
    for rows, columns in _pieces(logits):
        score = _score(logits[rows, columns])
        cells = _pixels(rows, columns, scale, shape)
        new = _is_new(cells, score, finer, int(CELL * scale))
        if not new.all():
            # A coarse cell of a known text joins lines, and tissue: what is left may be no text.
            cells, score = cells[new], _score(logits[rows[new], columns[new]])
        if score >= _LEAST and len(cells):
            x0, y0 = cells[:, :2].min(axis=0).tolist()
            x1, y1 = cells[:, 2:].max(axis=0).tolist()
            texts.append(Text((x0, y0, x1, y1), score, tuple(map(tuple, cells.tolist()))))
    return texts


def _is_new(cells: np.ndarray, score: float, finer: Sequence[Text], side: int) -> np.ndarray:
    """Return which cells (N, 4) are more than a text found, as surely, at a finer scale, (N,).

    The cells are ``side`` pixels wide, and reach beyond the text by so much.
    """
    new = np.ones(len(cells), dtype=bool)
    middle = (cells[:, :2] + cells[:, 2:]) / 2
    for text in finer:
        if text.score >= min(score, _SURE):
            box = np.array(text.box)
            new &= ((middle < box[:2] - side) | (middle > box[2:] + side)).any(axis=1)
    return new


def _pieces(logits: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows and columns of the cells of each text.

    Doubtful cells join lines to each other and to tissue: of a piece with clear cells, only what is
    near to these is a text. Where all are doubtful, they are one.
    """
    joined = logits > _JOINED
    clear = logits > _CLEAR
    labels, count = ndimage.label(joined, structure=_AROUND)
    sure = np.zeros(count + 1, dtype=bool)
    sure[labels[clear]] = True
    near = ndimage.binary_dilation(clear, _AROUND, _REACH, mask=joined)
    labels, _ = ndimage.label(near | (joined & ~sure[labels]), structure=_AROUND)
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        y, x = np.nonzero(labels[rows, columns] == number)
        yield y + rows.start, x + columns.start


def _score(logits: np.ndarray) -> float:
    """Return the likelihood of a piece from its likeliest cells.

    A few cells say little by themselves: a missing one counts as the threshold does.
    """
    core = np.zeros(_CORE)
    likeliest = np.sort(logits)[::-1][:_CORE]
    core[: len(likeliest)] = likeliest
    return round(float(expit(core.mean())), 6)


def _pixels(
    rows: np.ndarray, columns: np.ndarray, scale: float, shape: tuple[int, ...]
) -> np.ndarray:
    """Return the boxes of cells in the frame's own pixels, (N, 4) int."""
    side = CELL * scale
    edges = np.stack([columns, rows, columns + 1, rows + 1], axis=1) * side
    boxes = np.concatenate([np.floor(edges[:, :2]), np.ceil(edges[:, 2:])], axis=1).astype(int)
    inside: np.ndarray = np.minimum(boxes, [shape[1], shape[0]] * 2)
    return inside


def _double(value: np.ndarray) -> np.ndarray:
    """Return the picture at twice its size, interpolated between neighbours."""
    for _ in (0, 1):
        wide = np.empty((value.shape[0], 2 * value.shape[1]), dtype=np.uint8)
        nearest = value.astype(np.uint16)
        other = np.concatenate([nearest[:, 1:], nearest[:, -1:]], axis=1)
        wide[:, ::2], wide[:, 1::2] = value, (nearest + other) // 2
        value = wide.T
    return value


def _halve(value: np.ndarray) -> np.ndarray:
    even = value[: value.shape[0] // 2 * 2, : value.shape[1] // 2 * 2].astype(np.uint16)
    total = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)
