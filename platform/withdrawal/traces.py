"""Traces of what is withdrawn: its names, as they stand in columns, in texts and in JSON."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

GONE = "(withdrawn)"  # what stands where a name stood
_HEXADECIMAL = re.compile(r"[0-9a-f]{32,}")
_TOKEN = re.compile(r"[\w./#@%+-]+")
_ID_LENGTH = 32
_SHORT = 16  # characters of an id that ingest's notes keep


@dataclass(frozen=True)
class Traces:
    """Names of what is withdrawn.

    Attributes:
        ids: Of images, and of what is in quarantine.
        sources: As in the column ``source``.
        files: Names of files of which nothing is left, as in the list of sources.
        groups: Groups of which nothing is left.
    """

    ids: frozenset[str]
    sources: frozenset[str]
    files: frozenset[str]
    groups: frozenset[str]

    @cached_property
    def _names(self) -> frozenset[str]:
        # The user's own groups may be any words; only hashes are surely nothing else.
        hashes = {group for group in self.groups if _HEXADECIMAL.fullmatch(group)}
        return self.ids | self.sources | self.files | hashes

    @cached_property
    def _odd(self) -> "re.Pattern[str] | None":
        """Matches names that are no single token of a text, the longest first; None without any."""
        odd = [name for name in self._names if not _TOKEN.fullmatch(name)]
        ordered = sorted(odd, key=lambda name: (-len(name), name))
        return re.compile("|".join(map(re.escape, ordered))) if odd else None

    @cached_property
    def prefixes(self) -> frozenset[str]:
        """Beginnings of ids and groups, as ingest's notes have them."""
        return frozenset(name[:_SHORT] for name in self.ids | self.groups)

    def mend(self, text: str) -> str:
        """Return a text without these names; the same object where it has none."""
        found = _HEXADECIMAL.sub(self._without_id, text)
        if self._odd is not None:
            found = self._odd.sub(GONE, found)
        found = _TOKEN.sub(self._without_name, found)
        return text if found == text else found

    def mend_values(self, value: Any) -> Any:
        """Return plain values without these names, keys of mappings included."""
        if isinstance(value, str):
            return self.mend(value)
        if isinstance(value, list | tuple):
            return [self.mend_values(item) for item in value]
        if isinstance(value, dict):
            return {self.mend(key): self.mend_values(item) for key, item in value.items()}
        return value

    def _without_id(self, found: "re.Match[str]") -> str:
        text = found[0]
        if text in self._names:
            return GONE
        if len(text) > _ID_LENGTH:  # digests, and ids that stand beside each other
            for start in range(len(text) - _ID_LENGTH + 1):
                if text[start : start + _ID_LENGTH] in self.ids:
                    return GONE
        return text

    def _without_name(self, found: "re.Match[str]") -> str:
        token = found[0]
        bare = token.rstrip(".")
        if token in self._names or bare in self._names:
            return GONE
        if bare.startswith("/"):  # an absolute path or the end of a URI
            pieces = bare.split("/")
            if any("/".join(pieces[at:]) in self._names for at in range(1, len(pieces))):
                return GONE
        return token
