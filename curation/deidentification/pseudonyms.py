"""Pseudonyms: identifiers under a secret key, so that nobody without it can test a guess.

The key comes from the user. Without one, a key for this run alone is derived from the content of
the files: whoever has only the store cannot guess it, and a run that is continued finds it again,
also where some of the files were mended. It changes with the files; a key of one's own stays.
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
_PRIME = 2**521 - 1  # above any key, for shares of it
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


def key_shares(key: bytes, contents: Sequence[bytes]) -> dict[str, Any]:
    """Lock a key so that more than half of the files it was derived from open it again.

    Files may be mended while a run is continued. The key is cut into shares (A. Shamir, How to
    share a secret, 1979), and each is masked with the content of one file: who has only the shares
    has nothing.

    Returns:
        Plain values for :func:`recovered_key`.
    """
    files = [content for content in contents if content]
    needed = len(files) // 2 + 1
    secret = [int.from_bytes(key, "big")]
    secret += [_number(key, f"coefficient {power}") for power in range(1, needed)]
    shares = []
    for place, content in enumerate(files, start=1):
        value = sum(number * place**power for power, number in enumerate(secret))
        masked = (value + _number(content, "mask")) % _PRIME
        shares.append({"place": place, "file": _mark(content), "share": f"{masked:x}"})
    return {"needed": needed, "shares": shares}


def recovered_key(kept: dict[str, Any], contents: Sequence[bytes]) -> bytes | None:
    """Open what :func:`key_shares` locked; None where too many of the files are others now."""
    by_mark = {_mark(content): content for content in contents if content}
    points = [
        (share["place"], (int(share["share"], 16) - _number(by_mark[share["file"]], "mask")))
        for share in kept["shares"]
        if share["file"] in by_mark
    ][: kept["needed"]]
    if len(points) < kept["needed"]:
        return None
    total = 0
    for place, value in points:  # the polynomial through the points, at 0
        over, under = 1, 1
        for other, _ in points:
            if other != place:
                over, under = over * other % _PRIME, under * (other - place) % _PRIME
        total += value * over * pow(under, -1, _PRIME)
    key = total % _PRIME
    return key.to_bytes(32, "big") if key < 2**256 else None


def _number(secret: bytes, use: str) -> int:
    digest = hashlib.sha256(secret).digest()
    return int.from_bytes(hashlib.shake_256(use.encode() + digest).digest(80), "big") % _PRIME


def _mark(content: bytes) -> str:
    """Return 32 bits by which a file is known again."""
    return hashlib.sha256(b"mark" + hashlib.sha256(content).digest()).hexdigest()[:8]


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
