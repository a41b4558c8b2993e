"""One filesystem layer for local folders, ``s3://`` and ``gs://``.

A name appears only when its bytes are complete: locally by writing beside the target and renaming,
on object stores because an object becomes visible when its upload ends.
"""

import hashlib
import os
import uuid
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow.fs as pafs

from echostill.platform.errors import UsageError


class Storage:
    """A folder, local or remote, addressed by relative names with ``/``."""

    def __init__(self, root: str) -> None:
        """Open the folder ``root``; it need not exist yet.

        Raises:
            UsageError: The URI's scheme is not supported.
        """
        self.root = root.rstrip("/") if "://" in root else os.path.abspath(root)
        try:
            self._filesystem, self._path = pafs.FileSystem.from_uri(self.root)
        except (ValueError, OSError) as error:
            raise UsageError(
                f"cannot open '{root}': {error}. Use a local folder, s3:// or gs://."
            ) from None
        self.is_local = isinstance(self._filesystem, pafs.LocalFileSystem)

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (self.root,)

    def at(self, name: str) -> "Storage":
        """Return the folder ``name`` inside this one."""
        return Storage(f"{self.root}/{name}")

    def locate(self, name: str) -> str:
        """Return the full path or URI of ``name``, for messages and for other libraries."""
        return f"{self.root}/{name}" if name else self.root

    def exists(self, name: str = "") -> bool:
        """Return whether a file or folder of that name exists."""
        return bool(self._info(name).type != pafs.FileType.NotFound)

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, or None where there is no such file."""
        info = self._info(name)
        return int(info.size) if info.type == pafs.FileType.File else None

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        with self._filesystem.open_input_stream(self._full(name)) as stream:
            return bytes(stream.read())

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading and seeking, without reading it whole."""
        return cast(BinaryIO, self._filesystem.open_input_file(self._full(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically, making its folder where needed."""
        target = self._full(name)
        if not self.is_local:
            with self._filesystem.open_output_stream(target) as stream:
                stream.write(data)
            return
        folder = os.path.dirname(target)
        os.makedirs(folder, exist_ok=True)
        temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def append(self, name: str, data: bytes) -> None:
        """Append to a log file; object stores cannot append, so there the file is rewritten."""
        if self.is_local:
            target = self._full(name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "ab") as file:
                file.write(data)
        else:
            self.write(name, (self.read(name) if self.exists(name) else b"") + data)

    def list(self, name: str = "", *, recursive: bool = False) -> list[str]:
        """Return the sorted names of the files in a folder, relative to this storage."""
        selector = pafs.FileSelector(self._full(name), allow_not_found=True, recursive=recursive)
        prefix = self._path.rstrip("/") + "/"
        return sorted(
            info.path.removeprefix(prefix)
            for info in self._filesystem.get_file_info(selector)
            if info.type == pafs.FileType.File and not info.path.endswith(".tmp")
        )

    def sizes(self, name: str = "") -> dict[str, int]:
        """Return every file below a folder with its bytes, by name relative to this storage."""
        selector = pafs.FileSelector(self._full(name), allow_not_found=True, recursive=True)
        prefix = self._path.rstrip("/") + "/"
        found = self._filesystem.get_file_info(selector)
        files = (info for info in found if info.type == pafs.FileType.File)
        return {info.path.removeprefix(prefix): int(info.size) for info in files}

    def delete(self, name: str) -> None:
        """Delete a file or a folder; a missing one is fine."""
        kind = self._info(name).type
        if kind == pafs.FileType.Directory:
            self._filesystem.delete_dir(self._full(name))
        elif kind == pafs.FileType.File:
            self._filesystem.delete_file(self._full(name))

    def local_path(self, name: str = "") -> str:
        """Return the local path of ``name``.

        Raises:
            UsageError: The storage is remote.
        """
        if not self.is_local:
            raise UsageError(f"'{self.root}' is not a local folder.")
        return self._full(name)

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The Arrow filesystem, for readers that take one together with :meth:`arrow_path`."""
        return self._filesystem

    def arrow_path(self, name: str) -> str:
        """Return the path of ``name`` as the Arrow filesystem expects it."""
        return self._full(name)

    def _full(self, name: str) -> str:
        return f"{self._path}/{name}" if name else str(self._path)

    def _info(self, name: str) -> pafs.FileInfo:
        return self._filesystem.get_file_info(self._full(name))


def sha256(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()
