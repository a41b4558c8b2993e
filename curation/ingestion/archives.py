"""Archives: tar files as WebDataset makes them, in which an image and its ``.json`` share a key,
and zip files.

Members are read one at a time and nothing is unpacked to disk: tar in the order of the file, zip
with members of one key together. From a ``.json`` the values of the manifest's columns are used.
Other members (captions, arrays) are passed over and counted.
"""

import contextlib
import json
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Any, cast

from echostill.curation.ingestion.manifests.columns import as_text, match_columns
from echostill.platform.imaging.containers import (
    ARCHIVE,
    IMAGE_SUFFIXES,
    container_of,
    has_known_suffix,
)
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.imaging.viewers import Viewers

_INDEX = "DICOMDIR"  # the table of contents of a DICOM disc
NESTED = 3  # archives inside each other that are read
_WAITING = 256  # members that wait for their .json at most
_WAITING_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Member:
    """An image, cine or archive in an archive: its bytes, or why it must not be read."""

    name: str
    data: bytes | None = field(default=None, repr=False)
    values: dict[str, str] = field(default_factory=dict, repr=False)  # from its .json
    problem: str = ""
    viewer: str = ""  # why it may be a picture of a viewer or web page, see ``Viewers.claim``


@dataclass
class Passed:
    """What of an archive was not used: its members by kind, and names in its ``.json`` files."""

    members: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Entry:
    """A member as the archive lists it; ``read`` gives its bytes."""

    name: str
    size: int
    kind: str  # "file", "folder", or what else it is, in words
    read: Callable[[], bytes]


class _MemberError(Exception):
    """One member cannot be read, and those behind it can."""


def read_archive(
    file: SourceFile, limits: Limits, passed: Passed | None = None
) -> Iterator[Member]:
    """Read an archive's images, each with the values of the ``.json`` with its key.

    Args:
        file: The archive.
        limits: What a member may ask for.
        passed: Is told what was not used.

    Raises:
        DecodeError: The archive is damaged or truncated; earlier members have been yielded.
    """
    passed = Passed() if passed is None else passed
    waiting = _Waiting(passed)
    last = ""
    zipped = file.head().startswith(b"PK")
    viewers = Viewers(_names(file, zipped))
    with file.opened() as stream:
        try:
            entries = _zip_entries if zipped else _tar_entries
            for entry in entries(stream):
                last = entry.name
                viewers.add(entry.name)
                yield from waiting.before(entry.name)
                if entry.kind == "file" and entry.name.lower().endswith(".json"):
                    waiting.json(entry.name, entry.read())
                    continue
                member = _member(entry, limits, passed)
                if member is not None:
                    still = entry.name.lower().endswith(IMAGE_SUFFIXES)
                    claim = viewers.claim(entry.name) if still else ""
                    waiting.members.append(replace(member, viewer=claim))
        except _DAMAGE:
            yield from waiting.flush()
            where = f"after its member '{last}'" if last else "from the beginning"
            raise DecodeError(f"is a damaged or truncated archive {where}") from None
    yield from waiting.flush()


def walk_archive(
    file: SourceFile, limits: Limits, depth: int = NESTED
) -> Iterator[tuple[str, bytes | None]]:
    """Yield the path and the bytes of every member, also of the archives inside.

    A damaged archive ends early; what is to be read of it says so when it is read.
    """
    with contextlib.suppress(DecodeError):
        for member in read_archive(file, limits):
            yield member.name, member.data
            data = member.data or b""
            if depth > 1 and container_of(data[:4096], member.name) == ARCHIVE.name:
                inside = walk_archive(SourceFile(member.name, data=data), limits, depth - 1)
                yield from ((f"{member.name}/{name}", inner) for name, inner in inside)


_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
    *(OSError, EOFError, ValueError, ArithmeticError, NotImplementedError),
)


def key_of(name: str) -> str:
    """Return a member's key: its path up to the first dot in the file name."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.split(".")[0])


class _Waiting:
    """Members until their ``.json`` comes, which may stand before or behind them.

    WebDataset's key ends at the first dot of a name, but names with dots in them (a UID) are no
    less usual, and so is a ``.json`` after the whole name: the closest one counts.
    """

    def __init__(self, passed: Passed) -> None:
        self.members: list[Member] = []
        self._passed = passed
        self._key = ""
        self._found: dict[str, dict[str, str] | None] = {}  # by name without .json
        self._used: set[str] = set()

    def json(self, name: str, data: bytes) -> None:
        """Keep the values of a ``.json``."""
        values = _values(data, self._passed)
        self._found[name[: -len(".json")]] = values

    def before(self, name: str) -> Iterator[Member]:
        """Yield the members that need not wait any longer now that this one comes."""
        if key_of(name) != self._key:
            yield from self.flush()
            self._key = key_of(name)
        size = sum(len(member.data or b"") for member in self.members)
        while self.members:
            first = self.members[0]
            told = first.name in self._found or posixpath.splitext(first.name)[0] in self._found
            if not told and len(self.members) < _WAITING and size < _WAITING_BYTES:
                return
            size -= len(first.data or b"")
            yield self._resolved(self.members.pop(0))

    def flush(self) -> Iterator[Member]:
        """Yield all members that wait."""
        for member in self.members:
            yield self._resolved(member)
        self._passed.members[".json"] += len(self._found.keys() - self._used)
        self.members, self._found, self._used = [], {}, set()

    def _resolved(self, member: Member) -> Member:
        found = next((name for name in _owners(member.name) if name in self._found), None)
        if found is None:
            return member
        self._used.add(found)
        values = self._found[found]
        if member.problem:
            return member
        if values is None:
            # Without it the patient may be unknown, and a split could divide one.
            return Member(member.name, problem="has a .json beside it that cannot be read")
        return replace(member, values=values)


def _owners(name: str) -> Iterator[str]:
    """Yield the names, without ``.json``, of what may tell about a member, the closest first."""
    key = key_of(name)
    while len(name) >= len(key):
        yield name
        shorter = name.rpartition(".")[0]
        if len(shorter) < len(key):
            return
        name = shorter


class _TarInfo(tarfile.TarInfo):
    """A header that reports damage: tarfile treats a broken header as the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_TarInfo":
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None


def _names(file: SourceFile, zipped: bool) -> list[str]:
    """Return the names of an archive's files, as far as it can be read.

    A tar in a bucket would be fetched once more for them: of its files only those before a picture
    tell what lies beside it.
    """
    names: list[str] = []
    if "://" in file.location and not zipped:
        return names
    with contextlib.suppress(*_DAMAGE), file.opened() as stream:
        if zipped:
            with zipfile.ZipFile(stream) as packed:
                return [info.filename for info in packed.infolist() if not info.is_dir()]
        with tarfile.open(fileobj=stream, mode="r:*", tarinfo=_TarInfo) as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]
                if info.isfile():
                    names.append(info.name)
    return names


def _tar_entries(stream: IO[bytes]) -> Iterator[_Entry]:
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_TarInfo) as archive:
        for info in archive:
            # tarfile keeps a list of all members, which would grow with the archive.
            archive.members = []  # type: ignore[attr-defined]
            kind = "file" if info.isfile() else "folder" if info.isdir() else "a link or device"
            yield _Entry(info.name, info.size, kind, _tar_reader(archive, info))


def _tar_reader(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        data = cast(IO[bytes], archive.extractfile(info)).read()
        if len(data) < info.size:
            raise tarfile.ReadError("unexpected end of data")
        return data

    return read


def _zip_entries(stream: IO[bytes]) -> Iterator[_Entry]:
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        first: dict[str, int] = {}
        for place, info in enumerate(members):
            first.setdefault(key_of(info.filename), place)
        for info in sorted(members, key=lambda info: first[key_of(info.filename)]):
            linked = stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
            kind = "folder" if info.is_dir() else "a link or device" if linked else "file"
            if info.flag_bits & 1:
                kind = "encrypted"
            yield _Entry(info.filename, info.file_size, kind, _zip_reader(archive, info))


def _zip_reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with archive.open(info) as file:
                data = file.read(info.file_size + 1)
        except (*_DAMAGE, RuntimeError):
            raise _MemberError from None
        if len(data) != info.file_size:
            raise _MemberError
        return data

    return read


def _member(entry: _Entry, limits: Limits, passed: Passed) -> Member | None:
    """Return a member to read, or one with its problem; None if it is not an image."""
    base = posixpath.basename(entry.name)
    known = has_known_suffix(entry.name)
    if entry.kind == "folder":
        return None
    if base.startswith((".", "__")) or entry.name.startswith("__MACOSX/"):
        passed.members["hidden files"] += 1
        return None
    if base.upper() == _INDEX:
        passed.members[_INDEX] += 1
        return None
    problem = ""
    if entry.kind != "file":
        problem = f"is {entry.kind} in an archive"
    elif entry.name.startswith("/") or ".." in entry.name.split("/"):
        problem = "has a name that leads out of its archive"
    if not problem and entry.size > limits.max_bytes:
        message = f"holds {entry.size} bytes, more than allowed (max_bytes={limits.max_bytes})"
        return Member(entry.name, problem=message)
    data = None
    if not problem:
        try:
            data = entry.read()
        except _MemberError:
            problem = "is damaged in its archive, or packed in a way that is not read"
    if not known and (data is None or not _is_of_use(entry.name, data)):
        kind = kind_of_name(entry.name) if entry.kind != "encrypted" else "encrypted files"
        passed.members[kind] += 1
        return None
    return Member(entry.name, data, problem=problem)


def _is_of_use(name: str, data: bytes) -> bool:
    found = container_of(data[:4096], "")
    # Documents and arrays of numpy are zip files too.
    return bool(found) and not (found == ARCHIVE.name and posixpath.splitext(name)[1])


def kind_of_name(name: str) -> str:
    """Return what a file that is passed over is counted as: its suffix."""
    suffix = posixpath.splitext(posixpath.basename(name))[1].lower()
    if suffix in _UNREAD_ARCHIVES:
        return f"{suffix} (not read)"
    if len(suffix) < 2 or suffix[1:].isdigit():
        return "without a suffix"
    # A longer one may be a word of a name: 'scan.miller' is not to be repeated.
    return suffix if len(suffix) <= 5 or suffix in _LONG_SUFFIXES else "with another suffix"


_LONG_SUFFIXES = (".ipynb", ".parquet", ".pickle", ".sqlite", ".json5", ".jsonl", ".ndjson")
_UNREAD_ARCHIVES = (".7z", ".rar", ".iso", ".img", ".zst", ".lz4", ".lzma", ".cab", ".arj", ".z")


def _values(data: bytes, passed: Passed) -> dict[str, str] | None:
    """Return the manifest columns of a .json, None if it is not a JSON object."""
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    columns = match_columns(found)
    passed.keys.update(columns.ignored)
    return {
        meaning: as_text(found[name])
        for name, meaning in columns.used.items()
        if meaning != "file" and isinstance(found[name], str | int | float)
    }
