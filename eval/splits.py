"""Splits that never put a group (patient, examination, clip) on both sides.

A split depends only on (seed, group names, labels), not on the order of the rows.
"""

from typing import NamedTuple

import numpy as np

from echostill.eval.datasets import LabelledDataset
from echostill.eval.statistics.folds import group_folds
from echostill.platform.errors import UsageError
from echostill.platform.seeding import stream


class Folds(NamedTuple):
    """Cross-validation, or an official split with cross-validation inside its training side."""

    fold: np.ndarray  # (N,) int64
    tested: tuple[int, ...]  # folds that are tested; the others are only trained on

    def rows(self, number: int) -> np.ndarray:
        """Rows of a fold, ascending."""
        return np.flatnonzero(self.fold == number)

    def outside(self, *numbers: int) -> np.ndarray:
        """Rows of no such fold, ascending."""
        return np.flatnonzero(~np.isin(self.fold, numbers))

    def inner(self, tested: int) -> list[int]:
        """Folds on which settings may be chosen for a tested one: all others."""
        return [int(number) for number in np.unique(self.fold) if number != tested]


class Split(NamedTuple):
    """Row numbers of the two sides, each ascending."""

    train: np.ndarray  # (n,) int64
    test: np.ndarray  # (m,) int64


def split_dataset(dataset: LabelledDataset, seed: int, test_share: float = 0.3) -> Split:
    """Split a dataset: by its official split if it has one, otherwise by group with the seed.

    Raises:
        UsageError: A class cannot be, or is not, on both sides.
    """
    labels, names = _strata(dataset)
    if dataset.official_split is not None:
        split = official_split(dataset.groups, dataset.official_split)
    else:
        try:
            split = group_split(dataset.groups, labels, seed, test_share, names)
        except UsageError as error:
            raise UsageError(f"task '{dataset.name}': {error}") from None
    _require_classes(dataset, split)
    return split


def dataset_folds(dataset: LabelledDataset, folds: int, seed: int) -> Folds:
    """Divide a dataset for cross-validation by group; an official split is kept.

    Where there is an official split, its test side is the one fold that is tested, and its training
    side is divided, to choose settings on.

    Raises:
        UsageError: A class is not left to train on, or not on both sides of an official split.
    """
    labels, names = _strata(dataset)
    rows = np.arange(len(dataset))
    tested: tuple[int, ...] = ()
    fold = np.full(len(dataset), folds, dtype=np.int64)
    if dataset.official_split is not None:
        split = official_split(dataset.groups, dataset.official_split)
        _require_classes(dataset, split)
        rows, tested = split.train, (folds,)
    try:
        fold[rows] = group_folds(dataset.groups[rows], labels[rows], folds, seed, names)
    except UsageError as error:
        if not tested:
            raise UsageError(f"task '{dataset.name}': {error}") from None
        fold[rows] = 0  # too few groups to choose settings on: the usual ones are taken
    found = Folds(fold, tested or tuple(int(number) for number in np.unique(fold)))
    for number in found.tested:
        _require_classes(dataset, Split(found.outside(number), rows), ("training",))
    return found


def group_split(
    groups: np.ndarray,
    labels: np.ndarray,
    seed: int,
    test_share: float = 0.3,
    label_names: tuple[str, ...] | None = None,
) -> Split:
    """Split rows by group, with each label's share of test rows close to ``test_share``.

    The rarest label goes first. Its groups are visited in seeded order; a group moves to the test
    side if that brings the label's test rows closer to their target and every label of the group
    keeps a group to train on. A label without test rows then gets its smallest group.

    Args:
        groups: (N,) group names.
        labels: (N,) integers.
        seed: Seed of the groups' order.
        test_share: Share of the rows to test on, in (0, 1).
        label_names: Names of the labels 0, 1, ... for messages.

    Raises:
        UsageError: A label has too few groups for both sides.
    """
    if not 0 < test_share < 1:
        raise UsageError(f"test_share {test_share} is not valid: expected 0 < test_share < 1.")
    names, group_of = np.unique(groups, return_inverse=True)
    values, label_of = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), len(values)), dtype=np.int64)
    np.add.at(counts, (group_of, label_of), 1)
    target = counts.sum(0) * test_share
    held_out = np.zeros(len(names), dtype=bool)
    considered = np.zeros(len(names), dtype=bool)

    def may_move(group: int) -> bool:
        own = counts[group] > 0
        left = (counts[~held_out] > 0).sum(0)
        return bool((left[own] >= 2).all())

    groups_per_label = (counts > 0).sum(0)
    for label in np.lexsort((values, groups_per_label)):
        order = stream(seed, "evaluation split", str(values[label])).permutation(len(names))
        mine = [group for group in order if counts[group, label]]
        reached = int(counts[held_out, label].sum())
        for group in mine:
            if considered[group]:
                continue
            considered[group] = True
            new = reached + int(counts[group, label])
            closer = abs(new - target[label]) < abs(reached - target[label])
            if closer and may_move(group):
                held_out[group] = True
                reached = new
        if reached == 0:
            able = [group for group in mine if may_move(group)]
            if not able:
                value = int(values[label])
                shown = label_names[value] if label_names else str(value)
                raise UsageError(
                    f"class '{shown}' has {len(mine)} group(s), too few for training and testing. "
                    "Leave it out, or add groups."
                )
            held_out[min(able, key=lambda group: int(counts[group].sum()))] = True
    test = held_out[group_of]
    split = Split(np.flatnonzero(~test), np.flatnonzero(test))
    _assert_disjoint(groups, split)
    return split


def official_split(groups: np.ndarray, sides: np.ndarray) -> Split:
    """Use a published split unchanged, provided that no group is on both sides.

    Args:
        groups: (N,) group names.
        sides: (N,) ``train`` or ``test``.

    Raises:
        UsageError: A group is on both sides, or a side is empty.
    """
    split = Split(np.flatnonzero(sides == "train"), np.flatnonzero(sides == "test"))
    for name, rows in zip(("train", "test"), split, strict=True):
        if len(rows) == 0:
            raise UsageError(f"the split column has no row with '{name}': both sides need rows.")
    shared = sorted(set(groups[split.train]) & set(groups[split.test]))
    if shared:
        raise UsageError(
            f"the split column puts group '{shared[0]}' on both sides ({len(shared)} such groups). "
            "Correct the manifest, or remove the column to split by group."
        )
    return split


def _assert_disjoint(groups: np.ndarray, split: Split) -> None:
    assert not set(groups[split.train]) & set(groups[split.test]), "a group is on both sides"


def _strata(dataset: LabelledDataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """Label to stratify by: the class; for segmentation the rarest class in the image (0 none)."""
    if dataset.labels is not None:
        return dataset.labels, dataset.class_names
    assert dataset.masks is not None
    present = class_presence(dataset.masks, len(dataset.class_names))
    spread = [len(set(dataset.groups[column])) for column in present.T]
    strata = np.zeros(len(dataset), dtype=np.int64)
    for index in np.argsort(-np.array(spread), kind="stable"):  # the rarest class comes last
        strata[present[:, index]] = index + 1
    # A stratum with one group cannot be on both sides and need not be: it joins the largest.
    largest = int(np.bincount(strata).argmax())
    for value in np.unique(strata):
        if len(set(dataset.groups[strata == value])) < 2:
            strata[strata == value] = largest
    return strata, ("background only", *dataset.class_names)


def class_presence(masks: np.ndarray, classes: int) -> np.ndarray:
    """Return which foreground classes each mask contains: (N, classes) bool of masks (N, S, S)."""
    flat = masks.reshape(len(masks), -1)
    return np.stack([(flat == index).any(1) for index in range(1, classes + 1)], axis=1)


def _require_classes(
    dataset: LabelledDataset, split: Split, sides: tuple[str, ...] = ("training", "test")
) -> None:
    if dataset.labels is not None:
        present = dataset.labels[:, None] == np.arange(len(dataset.class_names))
    else:
        assert dataset.masks is not None
        present = class_presence(dataset.masks, len(dataset.class_names))
    for side, rows in zip(sides, split, strict=False):
        for name, column in zip(dataset.class_names, present[rows].T, strict=True):
            if not column.any():
                raise UsageError(
                    f"task '{dataset.name}': the {side} side has no image of class '{name}'. "
                    "Leave the class out, or add groups that contain it."
                )
