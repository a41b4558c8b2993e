"""The split of a prepared set, written to a file with checksums and read back.

The official one is used where there is one; otherwise groups are drawn 7:1:2 with seed 42,
stratified. An official split without validation images gets an eighth of its training groups for
them, so that train and val are as 7 to 1 there too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from echostill.eval.splits import group_split
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.tables.storage import Storage, sha256

SEED = 42
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
FOLDS = 5
SIDES = ("train", "val", "test")


@dataclass(frozen=True)
class BenchSplit:
    """Which rows are for what, by id.

    Attributes:
        kind: ``official``, ``official fold`` (one of the official folds is the test side),
            ``drawn``, or ``none`` where there are too few groups.
        sides: Ids of train, val and test, sorted.
        folds: Ids that each fold holds out, sorted; empty where there are no folds.
        folds_kind: ``official``, ``drawn`` or ``none``.
        note: What else to know.
    """

    kind: str
    sides: dict[str, tuple[str, ...]]
    folds: dict[str, tuple[str, ...]]
    folds_kind: str
    note: str = ""

    def describe(self) -> str:
        """Say in words how large the sides are."""
        sizes = ", ".join(f"{len(self.sides[side])} {side}" for side in SIDES)
        folds = f"; {len(self.folds)} {self.folds_kind} folds" if self.folds else ""
        note = f" ({self.note})" if self.note else ""
        return f"{self.kind}: {sizes}{folds}{note}"


def make_split(rows: Sequence[Mapping[str, Any]], *, test_fold: str, folds: bool) -> BenchSplit:
    """Split the rows of a prepared set.

    Args:
        rows: With ``id``, ``group``, ``label``, ``structures``, ``split`` and ``fold``.
        test_fold: The official fold to test on; empty for none.
        folds: Whether to draw grouped folds where there are no official ones.
    """
    rows = sorted(rows, key=lambda row: str(row["id"]))
    ids = np.array([row["id"] for row in rows], dtype=object)
    groups = np.array([row["group"] for row in rows], dtype=object).astype(str)
    strata = np.array([row["label"] or row["structures"] for row in rows], dtype=object).astype(str)
    given = np.array([row["split"] for row in rows], dtype=object).astype(str)
    held = np.array([row["fold"] for row in rows], dtype=object).astype(str)
    kind, notes = "official", []
    if (given != "").any():
        side = given.copy()
    elif test_fold and (held == test_fold).any():
        kind = "official fold"
        side = np.where(held == test_fold, "test", "train")
    else:
        kind = "drawn"
        side = np.full(len(ids), "train", dtype=object)
        note = _move(side, "test", SHARES["test"], groups, strata)
        if note:
            kind, notes = "none", [note]
    if kind != "none" and not (side == "val").any():
        note = _move(side, "val", SHARES["val"] / (SHARES["train"] + SHARES["val"]), groups, strata)
        notes.append(note or ("" if kind == "drawn" else f"val is drawn with seed {SEED}"))
    by_fold, folds_kind = _folds(held, groups, strata, draw=folds)
    split = BenchSplit(
        kind,
        {name: tuple(sorted(ids[side == name])) for name in SIDES},
        {name: tuple(sorted(ids[by_fold == name])) for name in sorted(set(by_fold) - {""})},
        folds_kind,
        "; ".join(note for note in notes if note),
    )
    check_groups(split, dict(zip(ids.tolist(), groups.tolist(), strict=True)))
    return split


def check_groups(split: BenchSplit, group_of: Mapping[str, str]) -> None:
    """Refuse a split that cuts a group.

    Raises:
        EchostillError: A group is on two sides, or in two folds.
    """
    for what, parts in (("sides", split.sides), ("folds", split.folds)):
        seen: dict[str, str] = {}
        for name, ids in parts.items():
            for row in ids:
                if seen.setdefault(group_of[row], name) != name:
                    raise EchostillError(
                        f"the group '{group_of[row]}' is in two {what} of the split: "
                        f"'{seen[group_of[row]]}' and '{name}'."
                    )


def encode_split(split: BenchSplit, name: str, table: str) -> bytes:
    """Return a split as JSON, with a checksum of what it says.

    Args:
        split: The split.
        name: Name of the set.
        table: Digest of the table that it splits.
    """
    says = {
        "set": name,
        "table": table,
        "kind": split.kind,
        "note": split.note,
        "seed": SEED,
        "shares": SHARES,
        "sides": {side: list(ids) for side, ids in split.sides.items()},
        "folds_kind": split.folds_kind,
        "folds": {fold: list(ids) for fold, ids in split.folds.items()},
    }
    return json.dumps({**says, "sha256": _checksum(says)}, indent=1).encode()


def read_split(storage: Storage, name: str, table: str) -> BenchSplit:
    """Read a split back.

    Args:
        storage: Folder of the prepared set.
        name: Name of the file.
        table: Digest of the table that it must split.

    Raises:
        UsageError: It is missing, was changed, or belongs to another table.
    """
    if not storage.exists(name):
        raise UsageError(f"'{storage.locate(name)}' does not exist: prepare the set again.")
    where, advice = storage.locate(name), "Prepare the set again with --overwrite."
    try:
        document = json.loads(storage.read(name))
        says = {key: value for key, value in document.items() if key != "sha256"}
        if document["sha256"] != _checksum(says):
            raise UsageError(f"'{where}' was changed: its checksum does not fit. {advice}")
        if says["table"] != table:
            raise UsageError(f"'{where}' is the split of another table. {advice}")
        return BenchSplit(
            says["kind"],
            {side: tuple(says["sides"][side]) for side in SIDES},
            {fold: tuple(ids) for fold, ids in says["folds"].items()},
            says["folds_kind"],
            says["note"],
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"'{where}' is not a split. {advice}") from None


def _checksum(says: Mapping[str, Any]) -> str:
    return sha256(json.dumps(says, sort_keys=True).encode())


def _move(side: np.ndarray, name: str, share: float, groups: np.ndarray, strata: np.ndarray) -> str:
    """Move a share of the training rows to another side, by group; say why where it cannot be."""
    rows = np.flatnonzero(side == "train")
    numbers, labels = _numbered(groups[rows], strata[rows], least=2)
    try:
        chosen = group_split(groups[rows], numbers, SEED, share, labels).test
    except (UsageError, ValueError):
        return f"too few groups for a side '{name}'"
    side[rows[chosen]] = name
    return ""


def _numbered(
    groups: np.ndarray, strata: np.ndarray, least: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number the strata; one with fewer groups than ``least`` joins the largest."""
    names, number = np.unique(strata, return_inverse=True)
    largest = int(np.bincount(number).argmax()) if len(number) else 0
    for value in range(len(names)):
        if len(set(groups[number == value])) < least:
            number[number == value] = largest
    return number.astype(np.int64), tuple(str(name) for name in names)


def _folds(
    held: np.ndarray, groups: np.ndarray, strata: np.ndarray, *, draw: bool
) -> tuple[np.ndarray, str]:
    if (held != "").any():
        return held, "official"
    if not draw or len(set(groups)) < FOLDS:
        return held, "none"
    from sklearn.model_selection import StratifiedGroupKFold  # half a second

    numbers, _ = _numbered(groups, strata, least=FOLDS)
    folds = np.full(len(groups), "", dtype=object)
    ways = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED)
    for fold, (_, test) in enumerate(ways.split(groups, numbers, groups)):
        folds[test] = str(fold)
    return folds, "drawn"
