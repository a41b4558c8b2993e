"""What is odd about a labelled set: pictures with several groups or labels, black frames."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

BLACK_GREY, BLACK_SHARE = 10, 0.01  # at most this share of a black frame is brighter than this


class Remark(NamedTuple):
    """Images to look at, and why."""

    kind: str  # 'identical', in different groups or with different labels, or 'black'
    files: tuple[str, ...]
    groups: tuple[str, ...]
    labels: tuple[str, ...]  # of the files; empty texts in a segmentation

    @property
    def contradicts(self) -> bool:
        """Whether identical pictures have different labels."""
        return self.kind == "identical" and len(set(self.labels)) > 1

    def as_dict(self) -> dict[str, object]:
        """Return plain values."""
        return {
            "kind": self.kind,
            "files": list(self.files),
            "groups": list(self.groups),
            "labels": list(self.labels),
            "contradicts": self.contradicts,
        }


def find_remarks(
    pixels: np.ndarray, files: Sequence[str], groups: Sequence[str], labels: Sequence[str]
) -> list[Remark]:
    """Find pictures that are in several groups or have several labels, and frames that are black.

    Args:
        pixels: (N, 3, S, S) uint8.
        files, groups, labels: Of each picture.
    """
    same: dict[bytes, list[int]] = defaultdict(list)
    for row, image in enumerate(pixels):
        same[hashlib.sha256(image.tobytes()).digest()].append(row)

    def remark(kind: str, rows: Sequence[int]) -> Remark:
        return Remark(
            kind,
            tuple(files[row] for row in rows),
            tuple(groups[row] for row in rows),
            tuple(labels[row] for row in rows),
        )

    bright = (pixels > BLACK_GREY).any(1).mean((1, 2))
    found = [
        remark("identical", rows)
        for rows in same.values()
        if len({groups[row] for row in rows}) > 1 or len({labels[row] for row in rows}) > 1
    ]
    return found + [remark("black", [int(row)]) for row in np.flatnonzero(bright <= BLACK_SHARE)]


def joined_groups(groups: Sequence[str], remarks: Sequence[Remark]) -> list[str]:
    """Return groups in which those with an identical picture are one, named after the first.

    A black frame says nothing of the patient, and joins none: there may be one in every group.
    """
    black = _black(remarks)
    name = {group: group for group in groups}

    def root(group: str) -> str:
        while name[group] != group:
            group = name[group]
        return group

    for remark in remarks:
        if remark.kind == "identical" and remark.files[0] not in black:
            first, *others = sorted({root(group) for group in remark.groups})
            name.update(dict.fromkeys(others, first))
    return [root(group) for group in groups]


def _black(remarks: Sequence[Remark]) -> set[str]:
    return {remark.files[0] for remark in remarks if remark.kind == "black"}


def in_words(
    remarks: Sequence[Remark], joined: bool, sides: Mapping[str, str] | None = None
) -> list[str]:
    """Say what was found, in a sentence per kind.

    Args:
        remarks: What was found.
        joined: Whether groups with an identical picture are kept together.
        sides: Of each file in an official split.
    """
    said = []
    same = [remark for remark in remarks if remark.kind == "identical"]
    dark = _black(remarks)
    shown = [remark for remark in same if remark.files[0] not in dark]
    apart = [remark for remark in shown if len(set(remark.groups)) > 1]
    if apart:
        count = sum(len(remark.files) for remark in apart)
        kept = "; such groups are kept together" if joined else ""
        said.append(f"{count} images are identical to one of another group{kept}")
    across = [r.files for r in shown if sides and len({sides[file] for file in r.files}) > 1]
    if across:
        listed = "; ".join(", ".join(files) for files in across)
        said.append(f"identical pictures on both sides of the official split: {listed}")
    wrong = [remark for remark in same if remark.contradicts]
    for remark in wrong:
        pairs = zip(remark.files, remark.labels, strict=True)
        said.append(
            "identical pictures with different labels: "
            + ", ".join(f"{file} ({label})" for file, label in pairs)
        )
    black = [remark.files[0] for remark in remarks if remark.kind == "black"]
    if black:
        said.append(f"{len(black)} black frame(s): {', '.join(black)}")
    return said
