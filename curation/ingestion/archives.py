"""WebDataset archives: tar files whose members share a key, an image and a ``.json`` beside it.

Members are read in the order of the file, one at a time; nothing is unpacked to disk. Of a
``.json`` the plain values of the manifest's columns are used. Other members (captions, arrays) are
passed over.
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
    """An image or cine in an archive: its bytes, or the problem that it is."""

    name: str
    data: bytes | None = field(default=None, repr=False)
    told: dict[str, str] = field(default_factory=dict, repr=False)  # by the .json beside it
    problem: str = ""


def read_archive(file: SourceFile, limits: Limits) -> Iterator[Member]:
    """Read an archive's images, each with what the ``.json`` of its key says.

    Raises:
        DecodeError: The archive is damaged or cut off; the members before that have been given.
    """
    key = ""
    waiting: list[Member] = []
    told: dict[str, str] | None = {}
    last = ""
    with file.opened() as stream:
        try:
            for info, archive in _entries(stream):
                last = info.name
                if key_of(info.name) != key:
                    yield from _with_values(waiting, told)
                    key, waiting, told = key_of(info.name), [], {}
                if info.isfile() and _suffix(info.name) == ".json":
                    told = _values(_read(archive, info))
                    continue
                member = _member(archive, info, limits)
                if member is not None:
                    waiting.append(member)
        except (tarfile.TarError, OSError, EOFError, ValueError, ArithmeticError) as error:
            yield from _with_values(waiting, told)
            where = f"after its member '{last}'" if last else "from the beginning"
            raise DecodeError(f"is a damaged or truncated archive {where}: {error}") from None
    yield from _with_values(waiting, told)


def key_of(name: str) -> str:
    """Return a member's key: its path up to the first dot of the file's name."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.split(".")[0])


def _suffix(name: str) -> str:
    return name[len(key_of(name)) :].lower()


class _Entry(tarfile.TarInfo):
    """A header whose damage is said: tarfile takes a broken one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Entry":
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None


def _entries(stream: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Entry) as archive:
        for info in archive:
            # The list that tarfile keeps of all members would grow with the archive.
            archive.members = []  # type: ignore[attr-defined]
            yield info, archive


def _member(archive: tarfile.TarFile, info: tarfile.TarInfo, limits: Limits) -> Member | None:
    """Return a member to read, or with its problem; None for what is no image."""
    base = posixpath.basename(info.name)
    known = info.name.lower().endswith(SUFFIXES)
    if info.isdir() or base.startswith((".", "__")):
        return None
    if not info.isfile():
        return Member(info.name, problem="is a link or device in an archive") if known else None
    if info.name.startswith("/") or ".." in info.name.split("/"):
        said = "has a name that leads out of its archive"
        return Member(info.name, problem=said) if known else None
    if info.size > limits.max_bytes:
        said = f"holds {info.size} bytes, more than allowed (max_bytes={limits.max_bytes})"
        return Member(info.name, problem=said)
    data = _read(archive, info)
    if not known and not container_of(data[:4096], ""):
        return None
    return Member(info.name, data)


def _read(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    data = cast(IO[bytes], archive.extractfile(info)).read()
    if len(data) < info.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _with_values(members: list[Member], told: dict[str, str] | None) -> Iterator[Member]:
    for member in members:
        if told is None and not member.problem:
            # Without it the patient may be unknown, and a split would cut through one.
            yield Member(member.name, problem="has a .json beside it that cannot be read")
        else:
            yield Member(member.name, member.data, told or {}, member.problem)


def _values(data: bytes) -> dict[str, str] | None:
    """Return the columns that a .json names, None where it is no JSON object."""
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
