"""Pseudonyms: identifiers under a secret key, so that nobody without it can test a guess.

The key comes from the user. Without one, a key for this run alone is derived from the content of
the files: whoever has only the store cannot guess it, and a run that is continued finds it again,
so nothing needs to be kept. It changes with the files; a key of one's own stays.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from echostill.platform.errors import UsageError

SHORTEST_KEY = 16  # bytes; a store holds hashes of guessable names, by which short keys are found
_SAMPLED_FILES = 16
_SHORTEST_PART = 3  # of a name, below which it is no identifier and would be found everywhere


def keyed_hash(key: bytes, kind: str, text: str) -> str:
    """Return 128 bits of HMAC-SHA-256 in hexadecimal; each kind of identifier has its own."""
    return hmac.new(key, f"{kind}\0{text}".encode(), hashlib.sha256).hexdigest()[:32]


def check_key(key: bytes) -> None:
    """Refuse a key that can be found by trying.

    Raises:
        UsageError: The key is too short.
    """
    if len(key) < SHORTEST_KEY:
        raise UsageError(
            f"the key for identifiers has {len(key)} bytes, fewer than {SHORTEST_KEY}: make one "
            "with `openssl rand -hex 32` and keep it safe."
        )


def key_check(key: bytes) -> str:
    """Return 32 bits that change with the key: a run is not continued under another."""
    return keyed_hash(key, "check", "")[:8]


def run_key(contents: Sequence[bytes]) -> bytes:
    """Derive a key for one run from the beginnings of some of its files.

    Where none could be read the key is random: such a run cannot be continued, and says so.
    """
    if not any(contents):
        return secrets.token_bytes(32)
    hasher = hashlib.sha256(b"echostill run key")
    for content in contents:
        hasher.update(hashlib.sha256(content).digest())
    return hasher.digest()


Item = TypeVar("Item")


def spread(items: Sequence[Item], count: int = _SAMPLED_FILES) -> list[Item]:
    """Return up to ``count`` of the items, evenly spread, from the first."""
    if len(items) <= count:
        return list(items)
    return [items[number * (len(items) - 1) // max(count - 1, 1)] for number in range(count)]


@dataclass(frozen=True)
class Veil:
    """What of a user's own names is shown: all, or their keyed hashes."""

    key: bytes = field(repr=False)
    hidden: bool

    def name(self, text: str) -> str:
        """Return a file's name, or its hash; the number of a frame stays."""
        if not self.hidden or not text:
            return text
        stem, mark, frame = text.rpartition("#")
        if not mark or not frame.isdigit():
            stem, mark, frame = text, "", ""
        return f"{keyed_hash(self.key, 'name', stem)}{mark}{frame}"

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Veil a row of the pool: its source and its group."""
        if not self.hidden:
            return row
        group = keyed_hash(self.key, "group", row["group_id"])
        return {**row, "source": self.name(row["source"]), "group_id": group}

    def refusal(self, row: dict[str, str], group: str = "") -> dict[str, str]:
        """Veil a row of the quarantine: its source, its id where that is a name, its message.

        Args:
            row: With source, id, error_class and message.
            group: The group that the user gave the file.
        """
        if not self.hidden:
            return row
        message = row["message"]
        if row["error_class"] == "ListingError":  # these quote other files' names
            message = re.sub(r"'([^']*)'", lambda quoted: f"'{self.name(quoted[1])}'", message)
        for part in _parts(row["source"], group):
            message = re.sub(re.escape(part), "...", message, flags=re.IGNORECASE)
        source = self.name(row["source"])
        identity = source if row["id"] == row["source"] else row["id"]
        return {**row, "source": source, "id": identity, "message": message}

    def values(self, values: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
        """Veil some of a configuration's values, for what is kept beside a result."""
        if not self.hidden:
            return {}
        return {key: self._value(values[key]) for key in keys if values.get(key)}

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.name(value)
        return tuple(self.name(part) for part in value)


def _parts(name: str, group: str) -> list[str]:
    """Return what of a file's path names it, the longest first."""
    path = name.rpartition("#")[0] or name
    parts = {path, group}
    for part in path.split("/"):
        parts |= {part, part.rpartition(".")[0]}
    return sorted((part for part in parts if len(part) >= _SHORTEST_PART), key=len, reverse=True)
