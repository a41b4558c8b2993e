"""Which images of several stores come into one pool, and under which ids: pure functions.

The stores come in a fixed order. What was withdrawn from one of them comes in from none. Of the
same pixels in several stores, the first store's image stays. An id that another image has already
is replaced by one from the id and the pixels, as an ingest does it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from echostill.curation.ingestion.identity import digest

Withdrawn = Callable[[Mapping[str, str]], bool]


@dataclass(frozen=True)
class SettledRows:
    """What becomes of the rows of a part; all others stay as they are.

    Attributes:
        copies: By row, the id of the image of another store that stays for it.
        withdrawn: Rows that were withdrawn from one of the stores.
        renamed: By row, its new id.
    """

    copies: Mapping[int, str] = field(default_factory=dict)
    withdrawn: frozenset[int] = frozenset()
    renamed: Mapping[int, str] = field(default_factory=dict)

    def stays(self, rows: int) -> list[bool]:
        """Return which of the part's rows come into the pool."""
        return [row not in self.copies and row not in self.withdrawn for row in range(rows)]


class Settling:
    """Settles the rows of stores that come one after the other, part by part."""

    def __init__(self, is_withdrawn: Withdrawn) -> None:
        """Begin with an empty pool.

        Args:
            is_withdrawn: Says it of a row with ``image_id``, ``content_hash`` and ``group_id``.
        """
        self._is_withdrawn = is_withdrawn
        self._ids: set[str] = set()
        self._earlier: dict[str, str] = {}  # id by content, of the stores before
        self._own: dict[str, str] = {}

    def next_store(self) -> None:
        """Begin a store: what came until now is of others."""
        self._earlier.update(self._own)  # none of these is there yet: it would be a copy
        self._own = {}

    def settle(
        self, ids: Sequence[str], contents: Sequence[str], groups: Sequence[str]
    ) -> SettledRows:
        """Settle a part.

        Args:
            ids: Of its rows.
            contents: Hashes of their pixels; empty where unknown.
            groups: As in its store.
        """
        copies: dict[int, str] = {}
        renamed: dict[int, str] = {}
        withdrawn: set[int] = set()
        for row, (image_id, content, group) in enumerate(zip(ids, contents, groups, strict=True)):
            values = {"image_id": image_id, "content_hash": content, "group_id": group}
            if self._is_withdrawn(values):
                withdrawn.add(row)
            elif content and content in self._earlier:
                copies[row] = self._earlier[content]
            else:
                kept = image_id
                if kept in self._ids:
                    kept = renamed[row] = digest("content", image_id, content)
                self._ids.add(kept)
                if content:
                    self._own.setdefault(content, kept)
        return SettledRows(copies, frozenset(withdrawn), renamed)


def apart(key: str, group: str) -> str:
    """Return the name of a group in a pool under another key, so that no two patients become one.

    Args:
        key: What tells the group's own key from others.
        group: As in its store.
    """
    return digest("merged group", key, group)


def new_names(names: Counter[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the names to replace.

    Args:
        names: That there are.
        wanted: New name by name, whatever its case and blanks.
    """
    asked = {word(name): new for name, new in wanted.items()}
    found = {name: asked[word(name)] for name in names if name and word(name) in asked}
    return {name: new for name, new in found.items() if name != new}


def word(name: str) -> str:
    """Return a name without case and blanks."""
    return "".join(name.casefold().split())
