"""Masks and label maps told from pictures: they lie beside a data set's images, as image files."""

import posixpath
import re
from collections.abc import Iterable, Iterator

import numpy as np
from scipy import ndimage

from echostill.platform.imaging.images import NoImageError
from echostill.platform.imaging.packed import inner_name

MASK = "masks or label maps"  # kind of what is no picture

_HIGHEST = 31  # labels count from 0; a picture of no more grey levels would be nearly black
_EDGES = 0.1  # share of neighbours that differ: labels fill areas, speckle differs everywhere
_SOLID = 0.5  # share of what is labelled that is not specks: dark pictures have specks alone
_SHOWN = 8  # labels that a message lists
_WORDS = (
    r"(?:masks?|gts?|segs?|segmentations?|labels?|label[ ._-]?maps?|annotations?|"
    r"ground[ ._-]?truths?)"
)
_MASK_NAME = re.compile(rf"(?P<picture>.+?)[ ._-]{_WORDS}(?:[ ._-]?\d{{1,2}})?", re.IGNORECASE)
_MASK_FOLDER = re.compile(rf"(?:.+[ ._-])?{_WORDS}", re.IGNORECASE)


def refuse_label_map(values: np.ndarray) -> None:
    """Refuse a mask or label map, which is no picture and mostly would be a black one.

    Args:
        values: Whole numbers (H, W).

    Raises:
        NoImageError: They are labels.
    """
    if is_label_map(values):
        raise NoImageError(describe_labels(values), MASK)


def is_label_map(values: np.ndarray, specks: bool = False) -> bool:
    """Return whether whole numbers (H, W) are labels: two values or small ones, in even areas.

    Args:
        values: The numbers.
        specks: Whether labels of a few pixels are labels too.
    """
    low, high = int(values.min()), int(values.max())
    if low == high:
        return False
    if not 0 <= low < high <= _HIGHEST and not bool(((values == low) | (values == high)).all()):
        return False
    if values.shape[1] > 1 and float((values[:, 1:] != values[:, :-1]).mean()) > _EDGES:
        return False
    found, counts = np.unique(values, return_counts=True)
    labelled = values != found[counts.argmax()]
    solid = ndimage.binary_opening(labelled, np.ones((3, 3)))
    return specks or int(solid.sum()) >= _SOLID * int(labelled.sum())


def describe_labels(values: np.ndarray) -> str:
    """Say of labels that they are no picture."""
    found = [str(int(value)) for value in np.unique(values)]
    shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    return f"holds only the values {shown} in even areas: a mask or label map, no picture"


def pictured(stem: str) -> str:
    """Return the stem of the picture that a mask's name says it belongs to, ``""`` of no mask.

    Args:
        stem: A file's name without folder and suffix: ``benign (1)_mask`` is one of ``benign (1)``.
    """
    found = _MASK_NAME.fullmatch(stem)
    return found["picture"] if found else ""


def is_mask_folder(name: str) -> bool:
    """Return whether a folder's name says that it holds masks: ``masks``, ``train_labels``."""
    return _MASK_FOLDER.fullmatch(name) is not None


def named_masks(names: Iterable[str]) -> set[str]:
    """Return the files that are masks by name: beside their picture, or in a folder beside its own.

    An empty mask is a black picture by its content, so its name has to tell.

    Args:
        names: Paths of files, with ``/`` between their parts.
    """
    by_name = {name: posixpath.splitext(inner_name(name))[0] for name in names}
    stems = set(by_name.values())
    parents = {around for stem in stems for around, name, _ in _cuts(stem) if is_mask_folder(name)}
    beside = {
        (around, within)
        for stem in (stems if parents else ())
        for around, name, within in _cuts(stem)
        if around in parents and not is_mask_folder(name)
    }
    return {name for name, stem in by_name.items() if _is_mask(stem, stems, beside)}


def _is_mask(stem: str, stems: set[str], beside: set[tuple[str, str]]) -> bool:
    folder, base = posixpath.split(stem)
    of = pictured(base)
    if of and posixpath.join(folder, of) in stems:
        return True
    return any(
        is_mask_folder(name) and (around, within) in beside for around, name, within in _cuts(stem)
    )


def _cuts(stem: str) -> Iterator[tuple[str, str, str]]:
    """Yield each folder of a path with what is around it and what is within."""
    parts = stem.split("/")
    for place in range(len(parts) - 1):
        yield "/".join(parts[:place]), parts[place], "/".join(parts[place + 1 :])
