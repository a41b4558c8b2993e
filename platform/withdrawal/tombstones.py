"""Tombstones: by what a withdrawn image is recognised when someone brings it back.

They are keyed digests (HMAC-SHA-256, 128 bits) and reveal nothing. Ids and contents, which nobody
can guess, are under a salt of the store. Groups stand for patients and can be guessed: they are
under the user's key, which the store does not have.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from echostill.platform.tables.storage import Storage
from echostill.platform.withdrawal.state import TOMBSTONES

ID, CONTENT, BYTES, FILE, GROUP = "id", "content", "bytes", "file", "group"
WITHDRAWN_FILE = "withdrawn "  # how names of withdrawn files begin in the list of sources
NOTE = "withdrawn"  # kind of the notes in records of shards


@dataclass(frozen=True)
class Tombstones:
    """The tombstones of a store.

    Attributes:
        salt: Of the store, hexadecimal; empty where nothing was withdrawn.
        marks: Digests of ids, contents (pixels), staged bytes and names of files, under the salt.
        groups: Digests of groups under the user's key.
        others: Those of stores that were merged into this one, each under its own salt.
    """

    salt: str = field(default="", repr=False)
    marks: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    others: tuple["Tombstones", ...] = ()

    def __bool__(self) -> bool:
        return bool(self.marks) or any(self.others)

    @classmethod
    def united(cls, stores: Iterable["Tombstones"]) -> "Tombstones":
        """Return the tombstones of several stores as those of one, which keeps the first's salt."""
        single = [replace(one, others=()) for each in stores for one in (each, *each.others)]
        found = [one for one in dict.fromkeys(single) if one]
        return replace(found[0], others=tuple(found[1:])) if found else cls()

    def mark(self, kind: str, value: str) -> str:
        """Return the digest of an id, a content or staged bytes."""
        return _digest(self.salt.encode(), kind, value)

    def found(self, kind: str, value: str) -> str:
        """Return the digest of a withdrawn id, content or bytes; empty where it is none."""
        mark = self.mark(kind, value) if self.marks else ""
        if mark and mark in self.marks:
            return mark
        return next((mark for one in self.others if (mark := one.found(kind, value))), "")

    def name(self, file: str) -> str:
        """Return a file's name for the list of sources: of a withdrawn one a digest."""
        mark = self.found(FILE, file)
        return f"{WITHDRAWN_FILE}{mark}" if mark else file

    def refusal(self, row: Mapping[str, Any], key: bytes) -> str:
        """Return the digest by which a row is refused; empty where it may come in.

        Args:
            row: With ``image_id``, ``content_hash`` and ``group_id`` of the pool, or the ``id`` of
                the quarantine.
            key: Key of the identifiers.
        """
        if not self:
            return ""
        for kind, column in ((ID, "image_id"), (ID, "id"), (CONTENT, "content_hash")):
            if row.get(column) and (mark := self.found(kind, row[column])):
                return mark
        if row.get("group_id") and self._is_of_group(_digest(key, GROUP, row["group_id"])):
            return self.mark(ID, row["image_id"])
        return ""

    def _is_of_group(self, digest: str) -> bool:
        return digest in self.groups or any(digest in one.groups for one in self.others)

    def added(
        self,
        ids: Iterable[str],
        contents: Iterable[str],
        staged: Iterable[str],
        groups: Iterable[str],
        key: bytes | None,
        files: Iterable[str] = (),
    ) -> "Tombstones":
        """Return these and more.

        Args:
            ids: Of images.
            contents: Hashes of pixels.
            staged: SHA-256 of staged bytes.
            groups: Groups that were withdrawn as a whole.
            key: The user's key; without one, groups get no tombstone.
            files: Names of files of which nothing is left.
        """
        salted = replace(self, salt=self.salt or secrets.token_hex(32))
        marks = {
            salted.mark(kind, value)
            for kind, values in ((ID, ids), (CONTENT, contents), (BYTES, staged), (FILE, files))
            for value in values
            if value
        }
        keyed = set() if key is None else {_digest(key, GROUP, group) for group in groups}
        return replace(salted, marks=self.marks | marks, groups=self.groups | keyed)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        values: dict[str, Any] = {
            "salt": self.salt,
            "marks": sorted(self.marks),
            "groups": sorted(self.groups),
        }
        return {
            **values,
            **({"others": [one.as_dict() for one in self.others]} if self.others else {}),
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Tombstones":
        """Read what :meth:`as_dict` gave."""
        marks, groups = frozenset(values["marks"]), frozenset(values["groups"])
        return cls(values["salt"], marks, groups, tuple(map(cls.of, values.get("others", ()))))


def read_tombstones(storage: Storage) -> Tombstones:
    """Return the tombstones of a store."""
    if not storage.exists(TOMBSTONES):
        return Tombstones()
    return Tombstones.of(json.loads(storage.read(TOMBSTONES)))


def write_tombstones(storage: Storage, tombstones: Tombstones) -> None:
    """Keep the tombstones of a store."""
    values = {"format_version": 1, **tombstones.as_dict()}
    storage.write(TOMBSTONES, json.dumps(values, indent=1).encode())


def _digest(secret: bytes, kind: str, value: str) -> str:
    text = f"withdrawn {kind}\0{value}".encode()
    return hmac.new(secret, text, hashlib.sha256).hexdigest()[:32]
