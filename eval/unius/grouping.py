"""Groups that no split may cut: patients, joined with what looks alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import sparse

from echostill.platform.errors import EchostillError


class Likeness(Protocol):
    """What finds images that look alike; images are added in the order of the rows."""

    def add(self, pixels: np.ndarray) -> None:
        """Take the next image, uint8 (H, W) or (H, W, 3)."""

    def components(self) -> np.ndarray:
        """Return a number for each image, (N,) int64: equal for those that look alike."""


@dataclass(frozen=True)
class Merged:
    """Groups after look-alikes were merged.

    Attributes:
        groups: The group of each row.
        merged: Rows that look like another row.
        contradictions: Sets of look-alikes with several labels.
        across: Sets of look-alikes on several sides of the official split.
    """

    groups: list[str]
    merged: int
    contradictions: int
    across: int


def merge_look_alikes(
    groups: Sequence[str], sides: Sequence[str], labels: Sequence[str], alike: np.ndarray
) -> Merged:
    """Join the groups of rows that look alike, on the same side of the official split.

    The official split is never changed: look-alikes on two of its sides stay apart and are counted.

    Args:
        groups: (N,) patient, subject or clip of each row; unique where nothing is known.
        sides: (N,) side of the official split or fold; empty where there is none.
        labels: (N,) label; empty where there is none.
        alike: (N,) from :meth:`Likeness.components`.

    Raises:
        EchostillError: The official split cuts a group that the set itself names.
    """
    side_of: dict[str, str] = {}
    for group, side in zip(groups, sides, strict=True):
        if side_of.setdefault(group, side) != side:
            raise EchostillError(
                f"the official split or folds put the group '{group}' on two sides "
                f"('{side_of[group]}' and '{side}'): the download is damaged, or another release "
                "than the card's."
            )
    names, group_of = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    pairs = [f"{number}\0{side}" for number, side in zip(alike.tolist(), sides, strict=True)]
    _, pair_of = np.unique(np.asarray(pairs), return_inverse=True)
    count = len(names) + int(pair_of.max(initial=-1)) + 1
    edges = (np.ones(len(groups), dtype=bool), (group_of, pair_of + len(names)))
    graph = sparse.coo_matrix(edges, shape=(count, count))
    component = sparse.csgraph.connected_components(graph, directed=False)[1]
    first: dict[int, str] = {}
    for position, name in enumerate(names):  # sorted: the first name stands for all
        first.setdefault(int(component[position]), str(name))
    own = [first[int(component[position])] for position in group_of]
    _, alike_of, sizes = np.unique(alike, return_inverse=True, return_counts=True)
    return Merged(
        own,
        int((sizes[alike_of] > 1).sum()),
        _several(alike_of, labels),
        _several(alike_of, sides),
    )


def _several(number: np.ndarray, values: Sequence[str]) -> int:
    """Count the numbers that occur with several values; an empty value is none."""
    found: dict[int, set[str]] = {}
    for key, value in zip(number.tolist(), values, strict=True):
        if value:
            found.setdefault(key, set()).add(value)
    return sum(len(several) > 1 for several in found.values())
