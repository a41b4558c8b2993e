"""The groups of a pool, counted when all shards are read: one that holds too much is a mistake.

Splits and selections never cut through a group. A word that all files share, taken for the patient,
makes one group of them all; an id that no file repeats makes as many groups as files.
"""

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

_SHARE = 0.25  # of the images, above which a group is looked at
_FILES = 5  # that it has at least: a cine is one file of many images
_TIMES = 4  # as many files as the median of the other groups


@dataclass(frozen=True)
class GroupCounts:
    """Counts of a pool's groups.

    Attributes:
        count: How many there are.
        images: In all of them.
        largest: The group with the most images; of several, the first by name.
        largest_images: Its images.
        suspicious: Whether it holds far more files than the others do.
    """

    count: int = 0
    images: int = 0
    largest: str = ""
    largest_images: int = 0
    suspicious: bool = False

    def describe(self, unit: str = "image") -> str:
        """Say how many there are, and the largest."""
        if not self.count:
            return "no groups"
        groups = "group" if self.count == 1 else "groups"
        images = unit if self.largest_images == 1 else f"{unit}s"
        share = self.largest_images / self.images
        return f"{self.count} {groups}, the largest of {self.largest_images} {images} ({share:.0%})"

    def warning(self) -> str:
        """Return what is wrong with the largest, empty where nothing is."""
        if not self.suspicious:
            return ""
        return (
            f"one group, '{self.largest}', holds {self.largest_images} of {self.images} images "
            f"({self.largest_images / self.images:.0%}): if they are not one patient's, correct "
            "the patient's column, the ids in the headers or group_pattern, as no split or quota "
            "divides a group"
        )


def count_groups(parts: Iterable[pa.Table]) -> GroupCounts:
    """Count the groups of a pool.

    Args:
        parts: Its parts, or their columns ``group_id`` and ``source``; a file lies in one of them.
    """
    images: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for part in parts:
        if not part.num_rows:
            continue
        file = pc.replace_substring_regex(part["source"], pattern=r"#\d+$", replacement="")
        named = pa.table({"group": part["group_id"], "file": file})
        for counter, rows in (
            (images, named),
            (files, named.group_by(["group", "file"]).aggregate([])),
        ):
            for found in rows["group"].value_counts().to_pylist():
                counter[found["values"]] += found["counts"]
    if not images:
        return GroupCounts()
    largest = min(images, key=lambda group: (-images[group], group))
    others = [number for group, number in files.items() if group != largest]
    total = images.total()
    suspicious = (
        files[largest] >= _FILES
        and images[largest] > _SHARE * total
        and files[largest] >= _TIMES * (statistics.median(others) if others else 1)
    )
    return GroupCounts(len(images), total, largest, images[largest], suspicious)
