"""Comparison of two coresets of one pool: images in both, entered and left, and shifted shares."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

SHOWN = 100


class Ids(Protocol):
    """A sequence of image ids."""

    def __getitem__(self, row: int) -> Any:
        """Return the id of a row."""


def compare_selections(
    ids: Ids,
    a: np.ndarray,
    b: np.ndarray,
    categories: Mapping[str, tuple[np.ndarray, list[Any]]],
    *,
    names: tuple[str, str],
    limit: int = SHOWN,
) -> dict[str, Any]:
    """Compare two selections of the same images.

    Args:
        ids: (N,) image ids in their order.
        a: (N,) bool, chosen by the first.
        b: (N,) bool, chosen by the second.
        categories: by name, the codes (N,) of a category and their values; a negative code means no
            value.
        names: of both coresets.
        limit: number of ids listed of those that entered and left.

    Returns:
        Numbers (``selected``, ``both``, ``only_a``, ``only_b``, ``jaccard``), ``entered`` and
        ``left`` (ids), ``by`` category the numbers and shares of each value, largest shift first,
        and ``text``.
    """
    both, only_a, only_b = int((a & b).sum()), a & ~b, b & ~a
    left, entered = np.flatnonzero(only_a), np.flatnonzero(only_b)
    union = both + len(left) + len(entered)
    found: dict[str, Any] = {
        "a": names[0],
        "b": names[1],
        "selected": {"a": int(a.sum()), "b": int(b.sum())},
        "both": both,
        "only_a": len(left),
        "only_b": len(entered),
        "jaccard": round(both / union, 6) if union else 1.0,
        "entered": [str(ids[int(row)]) for row in entered[:limit]],
        "left": [str(ids[int(row)]) for row in left[:limit]],
        "by": {name: _shifts(*found, a, b) for name, found in categories.items()},
    }
    found["text"] = describe_comparison(found)
    return found


def _shifts(
    codes: np.ndarray, values: list[Any], a: np.ndarray, b: np.ndarray
) -> list[dict[str, Any]]:
    known = codes >= 0
    images, in_a, in_b = (
        np.bincount(codes[known & mask], minlength=len(values)) for mask in (known, a, b)
    )
    share_a, share_b = in_a / max(1, int(a.sum())), in_b / max(1, int(b.sum()))
    shift = share_b - share_a
    order = sorted(range(len(values)), key=lambda code: (-abs(shift[code]), code))
    return [
        {
            "value": values[code],
            "images": int(images[code]),
            "a": int(in_a[code]),
            "b": int(in_b[code]),
            "share_a": round(float(share_a[code]), 6),
            "share_b": round(float(share_b[code]), 6),
            "shift": round(float(shift[code]), 6),
        }
        for code in order
        if images[code]
    ]


def describe_comparison(found: Mapping[str, Any]) -> str:
    """Describe a comparison in a few sentences."""
    chosen = found["selected"]
    lines = [
        f"'{found['a']}' has {chosen['a']} images, '{found['b']}' has {chosen['b']}: "
        f"{found['both']} are in both, {found['only_a']} left and {found['only_b']} entered "
        f"(Jaccard {found['jaccard']:.3f})."
    ]
    for name, rows in found["by"].items():
        moved = [row for row in rows if abs(row["shift"]) >= 0.0005][:3]
        if moved:
            words = "; ".join(
                f"{row['value'] if row['value'] != '' else 'unknown'} "
                f"{row['share_a']:.1%} -> {row['share_b']:.1%}"
                for row in moved
            )
            lines.append(f"By {name}: {words}.")
    return "\n".join(lines)
