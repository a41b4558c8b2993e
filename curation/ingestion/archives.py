"""WebDataset archives: tar files in which an image and its ``.json`` share a key.

Members are read one at a time, in the order of the file; nothing is unpacked to disk. From a
``.json`` the plain values of the manifest's columns are used. Other members (captions, arrays) are
ignored.
"""

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, cast

from echostill.curation.ingestion.manifests import OPTIONAL_COLUMNS
from echostill.platform.imaging.containers import SUFFIXES, container_of
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError


@dataclass(frozen=True)
class Member:
    """An image or cine in an archive: its bytes, or why it must not be read."""

    name: str
    data: bytes | None = field(default=None, repr=False)
    values: dict[str, str] = field(default_factory=dict, repr=False)  # from its .json
    problem: str = ""


def read_archive(file: SourceFile, limits: Limits) -> Iterator[Member]:
    """Read an archive's images, each with the values of the ``.json`` with its key.

    Raises:
        DecodeError: The archive is damaged or truncated; earlier members have been yielded.
    """
    key = ""
    waiting: list[Member] = []
    values: dict[str, str] | None = {}
    last = ""
    with file.opened() as stream:
        try:
            for info, archive in _entries(stream):
                last = info.name
                if key_of(info.name) != key:
                    yield from _with_values(waiting, values)
                    key, waiting, values = key_of(info.name), [], {}
                if info.isfile() and _suffix(info.name) == ".json":
                    values = _values(_read(archive, info))
                    continue
                member = _member(archive, info, limits)
                if member is not None:
                    waiting.append(member)
        except (tarfile.TarError, OSError, EOFError, ValueError, ArithmeticError):
            yield from _with_values(waiting, values)
            where = f"after its member '{last}'" if last else "from the beginning"
            raise DecodeError(f"is a damaged or truncated archive {where}") from None
    yield from _with_values(waiting, values)


def key_of(name: str) -> str:
    """Return a member's key: its path up to the first dot in the file name."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.split(".")[0])


def _suffix(name: str) -> str:
    return name[len(key_of(name)) :].lower()


class _Entry(tarfile.TarInfo):
    """A header that reports damage: tarfile treats a broken header as the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Entry":
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None


def _entries(stream: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Entry) as archive:
        for info in archive:
            # tarfile keeps a list of all members, which would grow with the archive.
            archive.members = []  # type: ignore[attr-defined]
            yield info, archive


def _member(archive: tarfile.TarFile, info: tarfile.TarInfo, limits: Limits) -> Member | None:
    """Return a member to read, or one with its problem; None if it is not an image."""
    base = posixpath.basename(info.name)
    known = info.name.lower().endswith(SUFFIXES)
    if info.isdir() or base.startswith((".", "__")):
        return None
    if not info.isfile():
        return Member(info.name, problem="is a link or device in an archive") if known else None
    if info.name.startswith("/") or ".." in info.name.split("/"):
        message = "has a name that leads out of its archive"
        return Member(info.name, problem=message) if known else None
    if info.size > limits.max_bytes:
        message = f"holds {info.size} bytes, more than allowed (max_bytes={limits.max_bytes})"
        return Member(info.name, problem=message)
    data = _read(archive, info)
    if not known and not container_of(data[:4096], ""):
        return None
    return Member(info.name, data)


def _read(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    data = cast(IO[bytes], archive.extractfile(info)).read()
    if len(data) < info.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _with_values(members: list[Member], values: dict[str, str] | None) -> Iterator[Member]:
    for member in members:
        if values is None and not member.problem:
            # Without it the patient may be unknown, and a split could divide one.
            yield Member(member.name, problem="has a .json beside it that cannot be read")
        else:
            yield Member(member.name, member.data, values or {}, member.problem)


def _values(data: bytes) -> dict[str, str] | None:
    """Return the manifest columns of a .json, None if it is not a JSON object."""
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    plain = {name: found[name] for name in OPTIONAL_COLUMNS if name in found}
    return {
        name: str(value).strip()
        for name, value in plain.items()
        if isinstance(value, str | int | float)
    }
