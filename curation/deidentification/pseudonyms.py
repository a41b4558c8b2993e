"""Pseudonyms: identifiers hashed with a secret key, so that nobody without it can test a guess.

The key comes from the user. Without one, a key for this run is derived from the content of the
files: someone who has only the store cannot guess it, and a continued run finds it again, even if
some of the files were repaired. It changes with the files; a user's key does not.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from echostill.platform.errors import UsageError

SHORTEST_KEY = 16  # bytes; a store has hashes of guessable names, which reveal short keys
_SAMPLED_FILES = 16
_PRIME = 2**521 - 1  # larger than any key, for its shares
_KEYS = frozenset(("root", "source", "exclude", "recursive", "group_pattern"))
_OWN_WORDS = "NoImageError"  # class of quarantined rows whose messages quote nothing of the user's
_SHORTEST_PART = 3  # characters; shorter parts of a name do not identify and occur everywhere


def keyed_hash(key: bytes, kind: str, text: str) -> str:
    """Return 128 bits of HMAC-SHA-256 in hexadecimal, different for each kind of identifier."""
    begun = _begun(key, kind).copy()
    begun.update(text.encode(errors="surrogatepass"))  # some names of files are no text
    return begun.hexdigest()[:32]


@lru_cache(maxsize=64)
def _begun(key: bytes, kind: str) -> hmac.HMAC:
    """Return what all hashes of a kind begin with: half of the work on a short text."""
    return hmac.new(key, f"{kind}\0".encode(), "sha256")


def check_key(key: bytes) -> None:
    """Reject a key that is short enough to be found by trial.

    Raises:
        UsageError: The key is too short.
    """
    if len(key) < SHORTEST_KEY:
        raise UsageError(
            f"the key for identifiers has {len(key)} bytes; expected at least {SHORTEST_KEY}. Make "
            "one with `openssl rand -hex 32` and keep it safe."
        )


def key_check(key: bytes) -> str:
    """Return 32 bits that change with the key, so that a run is not continued under another key."""
    return keyed_hash(key, "check", "")[:8]


def run_key(contents: Sequence[bytes]) -> bytes:
    """Derive a key for one run from the first bytes of some of its files.

    If none could be read, the key is random; such a run cannot be continued.
    """
    if not any(contents):
        return secrets.token_bytes(32)
    hasher = hashlib.sha256(b"echostill run key")
    for content in contents:
        hasher.update(hashlib.sha256(content).digest())
    return hasher.digest()


def key_shares(key: bytes, contents: Sequence[bytes]) -> dict[str, Any]:
    """Lock a key so that it can be opened with more than half of the files it was derived from.

    Files may be repaired before a run is continued. The key is divided into shares (A. Shamir, How
    to share a secret, 1979), and each share is masked with the content of one file: the shares
    alone reveal nothing.

    Returns:
        Plain values for :func:`recovered_key`.
    """
    files = [content for content in contents if content]
    needed = len(files) // 2 + 1
    secret = [int.from_bytes(key, "big")]
    secret += [_number(key, f"coefficient {power}") for power in range(1, needed)]
    shares = []
    for point, content in enumerate(files, start=1):
        value = sum(number * point**power for power, number in enumerate(secret))
        masked = (value + _number(content, "mask")) % _PRIME
        shares.append({"place": point, "file": _mark(content), "share": f"{masked:x}"})
    return {"needed": needed, "shares": shares}


def recovered_key(kept: dict[str, Any], contents: Sequence[bytes]) -> bytes | None:
    """Open a key that :func:`key_shares` locked; None if too many of the files have changed."""
    by_mark = {_mark(content): content for content in contents if content}
    points = [
        (share["place"], (int(share["share"], 16) - _number(by_mark[share["file"]], "mask")))
        for share in kept["shares"]
        if share["file"] in by_mark
    ][: kept["needed"]]
    if len(points) < kept["needed"]:
        return None
    total = 0
    for point, value in points:  # the polynomial through the points, at 0
        over, under = 1, 1
        for other, _ in points:
            if other != point:
                over, under = over * other % _PRIME, under * (other - point) % _PRIME
        total += value * over * pow(under, -1, _PRIME)
    key = total % _PRIME
    return key.to_bytes(32, "big") if key < 2**256 else None


def _number(secret: bytes, use: str) -> int:
    digest = hashlib.sha256(secret).digest()
    return int.from_bytes(hashlib.shake_256(use.encode() + digest).digest(80), "big") % _PRIME


def _mark(content: bytes) -> str:
    """Return 32 bits by which a file is recognised."""
    return hashlib.sha256(b"mark" + hashlib.sha256(content).digest()).hexdigest()[:8]


Item = TypeVar("Item")


def spread(items: Sequence[Item], count: int = _SAMPLED_FILES) -> list[Item]:
    """Return up to ``count`` of the items, evenly spread, starting with the first."""
    if len(items) <= count:
        return list(items)
    return [items[number * (len(items) - 1) // max(count - 1, 1)] for number in range(count)]


@dataclass(frozen=True)
class Pseudonymiser:
    """Replaces the user's own names by keyed hashes, or leaves them, as configured."""

    key: bytes = field(repr=False)
    hidden: bool

    def name(self, text: str) -> str:
        """Return a file's name or its hash; the number of a frame is kept."""
        if not self.hidden or not text:
            return text
        stem, mark, frame = text.rpartition("#")
        if not mark or not frame.isdigit():
            stem, mark, frame = text, "", ""
        return f"{keyed_hash(self.key, 'name', stem)}{mark}{frame}"

    def group(self, group: str) -> str:
        """Return a group, or its hash."""
        return keyed_hash(self.key, "group", group) if self.hidden else group

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Pseudonymise a row of the pool: its source and its group."""
        if not self.hidden:
            return row
        return {**row, "source": self.name(row["source"]), "group_id": self.group(row["group_id"])}

    def refusal(self, row: dict[str, str], group: str = "") -> dict[str, str]:
        """Pseudonymise a row of the quarantine: source, message, and the id if it is a name.

        Args:
            row: A row with source, id, error_class and message.
            group: The group that the user gave the file.
        """
        if not self.hidden:
            return row
        message = row["message"]
        if row["error_class"] == "ListingError":  # these quote other files' names
            message = re.sub(r"'([^']*)'", self._quoted, message)
        if row["error_class"] == _OWN_WORDS:
            return {**row, "source": self.name(row["source"]), "id": self._identity(row)}
        for part in _parts(row["source"], group):
            message = re.sub(re.escape(part), "...", message, flags=re.IGNORECASE)
        source = self.name(row["source"])
        return {**row, "source": source, "id": self._identity(row), "message": message}

    def _identity(self, row: dict[str, str]) -> str:
        return self.name(row["id"]) if row["id"] == row["source"] else row["id"]

    def _quoted(self, found: "re.Match[str]") -> str:
        """Hash what a message quotes, unless it is a key of the configuration."""
        return f"'{found[1] if found[1] in _KEYS else self.name(found[1])}'"

    def values(self, values: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
        """Pseudonymise some of a configuration's values, for the copy stored with a result."""
        if not self.hidden:
            return {}
        return {key: self._value(values[key]) for key in keys if values.get(key)}

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.name(value)
        return tuple(self.name(part) for part in value)


def _parts(name: str, group: str) -> list[str]:
    """Return the parts of a file's path that may identify it, the longest first."""
    path = name.rpartition("#")[0] or name
    parts = {path, group}
    for part in path.split("/"):
        parts |= {part, part.rpartition(".")[0]}
    return sorted((part for part in parts if len(part) >= _SHORTEST_PART), key=len, reverse=True)
