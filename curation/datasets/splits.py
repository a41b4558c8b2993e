"""Splits of a coreset by group: a patient, examination or clip is never on two sides.

Groups that hold copies of each other's images, by the table of duplicates, count as one group.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from echostill.curation.datasets.chosen import ChosenImages
from echostill.platform.errors import UsageError
from echostill.platform.names import is_name
from echostill.platform.seeding import stream
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, Table

CLASSES = ("label", "organ", "device", "modality")


def read_shares(texts: Sequence[str]) -> dict[str, float]:
    """Read splits such as ``train=0.8`` into shares by name.

    Raises:
        UsageError: A text is no split, a name is there twice, or the shares do not sum to 1.
    """
    shares: dict[str, float] = {}
    for text in texts:
        name, mark, value = text.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not mark or not is_name(name) or not 0 < share <= 1 or name in shares:
            raise UsageError(
                f"split '{text}' is not valid: expected a new name and its share, "
                "such as train=0.8."
            )
        shares[name] = share
    if shares and abs(sum(shares.values()) - 1) > 1e-6:
        total = f"{sum(shares.values()):g}"
        raise UsageError(f"the shares of the splits sum to {total}: expected 1.")
    return shares or {"train": 1.0}


def joined_groups(store: Store, ids: Sequence[str], groups: Sequence[str]) -> np.ndarray:
    """Number the groups of images, and join those that hold copies of one picture.

    Args:
        store: Its table of duplicates is read, if there is one.
        ids: Image ids.
        groups: Their groups.

    Returns:
        (N,) int64: equal where images must be on the same side.
    """
    own = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    storage = store.duplicates()
    if not storage.exists(MANIFEST):
        return own.astype(np.int64)
    copies = Table.open(storage, "duplicates").read(["image_id", "duplicate_group"])
    position = {image_id: row for row, image_id in enumerate(ids)}
    rows = [position.get(image_id, -1) for image_id in copies["image_id"].to_pylist()]
    inside = np.asarray(rows, dtype=np.int64) >= 0
    codes = copies["duplicate_group"].combine_chunks().dictionary_encode().indices.to_numpy()
    left = own[np.asarray(rows, dtype=np.int64)[inside]]
    right = codes[inside] + own.max(initial=-1) + 1
    size = int(max(own.max(initial=-1), right.max(initial=-1))) + 1
    links = coo_array((np.ones(len(left)), (left, right)), shape=(size, size))
    sides: np.ndarray = connected_components(links, directed=False)[1]
    return sides[own].astype(np.int64)


def split_by_group(
    groups: np.ndarray, classes: Sequence[str], shares: Mapping[str, float], seed: int
) -> list[str]:
    """Put whole groups on sides, so that each class is shared out as near to the shares as it goes.

    Groups are taken in seeded order, the largest first; each goes where its classes are missing
    most (iterative stratification, Sechidis et al., ECML 2011, with groups for examples).

    Args:
        groups: (N,) group numbers.
        classes: (N,) class names.
        shares: Share of the images by side.
        seed: Of the order.

    Returns:
        The side of each image.

    Raises:
        UsageError: There are fewer groups than sides.
    """
    sides = list(shares)
    if len(sides) == 1:
        return sides * len(groups)
    numbers, group_of = np.unique(groups, return_inverse=True)
    if len(numbers) < len(sides):
        raise UsageError(
            f"{len(numbers)} group(s) of images cannot be split in {len(sides)}: a group is never "
            "divided. Ask for fewer splits, or for a larger coreset."
        )
    class_of = np.unique(np.asarray(classes, dtype=object).astype(str), return_inverse=True)[1]
    counts = np.zeros((len(numbers), int(class_of.max()) + 1))
    np.add.at(counts, (group_of, class_of), 1)
    missing = np.outer(list(shares.values()), counts.sum(0))
    order = stream(seed, "dataset split").permutation(len(numbers))
    order = order[np.argsort(-counts[order].sum(1), kind="stable")]
    side_of = np.zeros(len(numbers), dtype=np.int64)
    empty = set(range(len(sides)))
    for done, group in enumerate(order):
        # The last groups go to sides that have none yet: no side stays empty.
        open_sides = sorted(empty) if len(order) - done <= len(empty) else range(len(sides))
        wanted = {side: float(counts[group] @ missing[side]) for side in open_sides}
        side = max(open_sides, key=lambda side: (wanted[side], missing[side].sum(), -side))
        side_of[group] = side
        missing[side] -= counts[group]
        empty.discard(side)
    return [sides[side] for side in side_of[group_of]]


def described(
    chosen: ChosenImages, classes: str | None, shares: Mapping[str, float], seed: int
) -> pa.Table:
    """Describe the images of a coreset, with their classes and splits.

    Args:
        chosen: The images.
        classes: Column of the pool that is the class; None for the label if any image has one,
            otherwise the organ.
        shares: Share of the images by split.
        seed: Of the splits.

    Returns:
        The pool's columns, then ``class`` and ``split``.

    Raises:
        UsageError: There is no such column, or there are fewer groups than splits.
    """
    if classes is not None and classes not in CLASSES:
        raise UsageError(f"class '{classes}' is not valid: expected {', '.join(CLASSES)}.")
    table = chosen.described()
    column = classes or ("label" if any(table["label"].to_pylist()) else "organ")
    named = [value or "" for value in table[column].to_pylist()]
    ids, groups = (table[name].to_pylist() for name in ("image_id", "group_id"))
    sides = split_by_group(joined_groups(chosen.store, ids, groups), named, shares, seed)
    table = table.append_column("class", pa.array(named, pa.string()))
    return table.append_column("split", pa.array(sides, pa.string()))
