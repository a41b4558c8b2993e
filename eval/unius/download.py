"""A download as the user has it: a folder, an archive, or archives in either, seen as one tree.

Nothing is unpacked to disk. An archive is a folder of its own name in the paths:
``AUL.zip/Benign.zip/Benign/image/194.jpg``.
"""

import hashlib
import os
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, cast

from echostill.platform.errors import EchostillError, UsageError, nearest
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.tables.storage import sha256

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
DEPTH = 4  # archives in archives
_IN_MEMORY = 64 * 2**20
_RUBBISH = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError)


@dataclass(frozen=True)
class _Entry:
    """A file of the tree."""

    size: int
    mark: str  # what is known of its content without reading it
    read: Callable[[], bytes]


class Download:
    """The files of a download by their paths, sorted.

    Use it as a context: archives stay open meanwhile.
    """

    def __init__(self, location: str, limits: Limits | None = None) -> None:
        """Open a download.

        Raises:
            UsageError: It is neither a folder nor an archive that is read.
            EchostillError: An archive, or one inside it, is damaged.
        """
        self.location = location
        self._limits = limits or Limits()
        self._open = ExitStack()
        self._entries: dict[str, _Entry] = {}
        self.archives: dict[str, IO[bytes]] = {}  # open, also those inside others
        path = Path(location).expanduser()
        try:
            if path.is_dir():
                self._add_folder(path)
            elif path.is_file():
                self._add_file(path)
            else:
                raise UsageError(_missing(path))
        except BaseException:
            self._open.close()
            raise
        self.names = sorted(self._entries)

    def __enter__(self) -> "Download":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            DecodeError: It is damaged in its archive, cannot be read, or is too large.
        """
        entry = self._entries[name]
        if entry.size > self._limits.max_bytes:
            allowed = f"more than allowed (max_bytes={self._limits.max_bytes})"
            raise DecodeError(f"holds {entry.size} bytes, {allowed}")
        try:
            return entry.read()
        except _BROKEN as error:
            reason = str(error) if isinstance(error, RuntimeError) else type(error).__name__
            raise DecodeError(f"cannot be read from its folder or archive ({reason})") from None

    @property
    def digest(self) -> str:
        """A digest of the paths, sizes and, in archives, checksums of all files."""
        lines = [
            f"{name}\0{self._entries[name].size}\0{self._entries[name].mark}" for name in self.names
        ]
        return sha256("\n".join(lines).encode("utf-8", "backslashreplace"))

    def checksum(self, name: str) -> str:
        """Return the SHA-256 of a file of the tree, or of one of the :attr:`archives`."""
        if name not in self.archives:
            return sha256(self.read(name))
        file = self.archives[name]
        place = file.tell()  # what reads the archive goes on from here
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
        file.seek(place)
        return digest.hexdigest()

    def _add_folder(self, root: Path) -> None:
        for folder, folders, files in os.walk(root, followlinks=True):
            folders.sort()
            for name in sorted(files):
                path = Path(folder, name)
                inner = path.relative_to(root).as_posix()
                if not _is_rubbish(inner) and path.is_file():
                    self._add_path(path, inner)

    def _add_file(self, path: Path) -> None:
        if not _is_archive(path.name) and not zipfile.is_zipfile(path):
            raise UsageError(
                f"'{path}' is a file that is not read as a download: give the folder that holds "
                f"it, or an archive ({', '.join(ARCHIVES)})."
            )
        self._add_on_disk(path, path.name)

    def _add_path(self, path: Path, name: str) -> None:
        if _is_archive(name):
            self._add_on_disk(path, name)
        else:
            self._add(name, _Entry(path.stat().st_size, "", path.read_bytes))

    def _add_on_disk(self, path: Path, name: str) -> None:
        self._add_archive(name, self._open.enter_context(path.open("rb")), 1)

    def _add_archive(self, name: str, file: IO[bytes], depth: int) -> None:
        if depth > DEPTH:
            raise EchostillError(
                f"'{name}' is an archive {DEPTH} archives deep, which is not read."
            )
        self.archives[name] = file
        try:
            members = _zip_members if not name.lower().endswith(ARCHIVES[1:]) else _tar_members
            for member, entry in members(file, self._open):
                inner = f"{name}/{_portable(member)}"
                if _is_rubbish(member):
                    continue
                if _is_archive(member):
                    if entry.size > self._limits.max_bytes:
                        raise EchostillError(
                            f"'{inner}' holds {entry.size} bytes, too many to read."
                        )
                    held = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
                    self._open.enter_context(held)
                    held.write(entry.read())
                    held.seek(0)
                    self._add_archive(inner, cast(IO[bytes], held), depth + 1)
                else:
                    self._add(inner, entry)
        except _BROKEN as error:
            raise EchostillError(
                f"the archive '{name}' is damaged or incomplete ({error}): download it again."
            ) from None

    def _add(self, name: str, entry: _Entry) -> None:
        self._entries[_portable(name)] = entry


def _zip_members(file: IO[bytes], opened: ExitStack) -> Iterator[tuple[str, _Entry]]:
    archive = opened.enter_context(zipfile.ZipFile(file))
    for info in archive.infolist():
        if not info.is_dir():
            read = partial(archive.read, info)
            yield info.filename, _Entry(info.file_size, f"{info.CRC:08x}", read)


def _tar_members(file: IO[bytes], opened: ExitStack) -> Iterator[tuple[str, _Entry]]:
    archive = tarfile.open(fileobj=file, mode="r:*")  # noqa: SIM115
    opened.enter_context(archive)
    for info in archive.getmembers():
        if info.isfile():
            yield info.name, _Entry(info.size, "", partial(_of_tar, archive, info))


def _of_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    return cast(IO[bytes], archive.extractfile(info)).read()


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVES)


def _is_rubbish(name: str) -> bool:
    return any(part in _RUBBISH or part.startswith("._") for part in name.split("/"))


def _portable(name: str) -> str:
    """Return a path with / as separator, in composed Unicode, that leads nowhere else."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return unicodedata.normalize("NFC", "/".join(parts))


def _missing(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"there is no '{path}'.{nearest(path.name, names)}"
