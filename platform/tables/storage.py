"""One filesystem layer for local folders, ``s3://`` and ``gs://``.

A name appears only when its bytes are complete: locally by writing beside the target and renaming,
on object stores because an object becomes visible when its upload ends.

Options of an object store may follow its URI, ``s3://bucket/folder?region=eu-central-1``, and then
belong to every name inside; credentials and the endpoint (``AWS_ENDPOINT_URL``) are better left to
the environment.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs

from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.preflight.buckets import check_bucket, refusal
from echostill.platform.tables.atomic import UNFINISHED, atomic_write_bytes


class Storage:
    """A folder, local or remote, addressed by relative names with ``/``."""

    def __init__(self, root: str) -> None:
        """Open the folder ``root``; it need not exist yet.

        Raises:
            UsageError: The URI's scheme is not supported, or the path is not text.
        """
        self._options = ""
        self._filesystem: pafs.FileSystem = pafs.LocalFileSystem()
        local = root if "://" not in root else _of_file_uri(root)
        self.is_local = local is not None
        if local is not None:
            self.root = self._path = local_folder(local)
            return
        location, _, self._options = root.partition("?")
        self.root = location.rstrip("/")
        try:
            self._filesystem, self._path = _open(self.root, self._options)
        except (ValueError, OSError) as error:
            raise UsageError(
                f"cannot open '{root}': {error}. Use a local folder, s3:// or gs://."
            ) from None

    def __reduce__(self) -> tuple[Callable[..., "Storage"], tuple[str, ...]]:
        return _reopen, (self.uri,)

    @property
    def uri(self) -> str:
        """The root with its options, which opens the same folder again."""
        return f"{self.root}?{self._options}" if self._options else self.root

    def at(self, name: str) -> "Storage":
        """Return the folder ``name`` inside this one."""
        options = f"?{self._options}" if self._options else ""
        return Storage(f"{self.root.rstrip('/')}/{name}{options}")

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

    def modified(self, name: str) -> float | None:
        """Return when a file was last written, by the storage's own clock, in seconds since 1970.

        None where there is no such file.
        """
        info = self._info(name)
        return info.mtime_ns / 1e9 if info.type == pafs.FileType.File else None

    def mark(self, name: str) -> tuple[int, int] | None:
        """Return what changes when a file is replaced: its time and its size.

        None where there is no such file.
        """
        if not self.is_local:
            info = self._info(name)
            return (info.mtime_ns, info.size) if info.type == pafs.FileType.File else None
        try:  # asked several times in each request to the service; Arrow takes ten times as long
            found = os.stat(self._full(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return (found.st_mtime_ns, found.st_size) if stat.S_ISREG(found.st_mode) else None

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        with (
            self._explained("read", name),
            self._filesystem.open_input_stream(self._full(name)) as stream,
        ):
            return bytes(stream.read())

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading and seeking, without reading it whole."""
        return cast(BinaryIO, self._filesystem.open_input_file(self._full(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically, making its folder where needed."""
        target = self._full(name)
        if not self.is_local:
            # In one write, so that whatever ends the upload early ends it without an object.
            with (
                self._explained("write", name),
                self._filesystem.open_output_stream(target) as stream,
            ):
                stream.write(data)
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        atomic_write_bytes(target, data)

    def append(self, name: str, data: bytes) -> None:
        """Append to a local file, in one write; object stores cannot append.

        Raises:
            UsageError: The storage is remote.
        """
        target = self.local_path(name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "ab", buffering=0) as file:
            file.write(data)

    def list(self, name: str = "", *, recursive: bool = False) -> list[str]:
        """Return the sorted names of the files in a folder, relative to this storage."""
        return sorted(self.sizes(name, recursive=recursive))

    def sizes(self, name: str = "", *, recursive: bool = True) -> dict[str, int]:
        """Return the sizes in bytes of the files in a folder, by names as in :meth:`list`."""
        selector = pafs.FileSelector(self._full(name), allow_not_found=True, recursive=recursive)
        prefix = self._path.rstrip("/") + "/"
        with self._explained("list", name):
            found = self._filesystem.get_file_info(selector)
        return {
            info.path.removeprefix(prefix): int(info.size)
            for info in found
            if info.type == pafs.FileType.File and not info.path.endswith(UNFINISHED)
        }

    def newest(self, name: str = "") -> str:
        """Return when the newest file in a folder was written, UTC; empty where that is unknown."""
        selector = pafs.FileSelector(self._full(name), allow_not_found=True, recursive=True)
        with self._explained("list", name):
            found = self._filesystem.get_file_info(selector)
        times = [info.mtime for info in found if info.type == pafs.FileType.File and info.mtime]
        return max(times).strftime("%Y-%m-%dT%H:%M:%SZ") if times else ""

    def delete(self, name: str) -> None:
        """Delete a file or a folder; a missing one is fine."""
        kind = self._info(name).type
        if kind == pafs.FileType.Directory:
            self._filesystem.delete_dir(self._full(name))
        elif kind == pafs.FileType.File:
            self._filesystem.delete_file(self._full(name))

    def sweep(self) -> None:
        """Delete what killed writers left half-written; only while nobody writes here."""
        if self.is_local:
            for path in Path(self._path).rglob(f"*{UNFINISHED}"):
                path.unlink(missing_ok=True)

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
        with self._explained("look at", name):
            return self._filesystem.get_file_info(self._full(name))

    @contextmanager
    def _explained(self, action: str, name: str) -> Iterator[None]:
        """Name what could not be reached; what an object store's library raises is an OSError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if self.is_local:
                raise
            said = f"cannot {action} '{self.locate(name)}': {' '.join(str(error).split())}"
            raise refusal(self.root, error) or EchostillError(said) from None


def local_folder(path: str) -> str:
    """Return a local folder's absolute path; whatever else its name holds stands for itself.

    Only ``~/`` is the home folder, as shells and configuration files mean it.

    Raises:
        UsageError: The path is empty, or is not text: Arrow and MLflow take paths as UTF-8.
    """
    if not path or "\0" in path:
        raise UsageError(f"{path!r} is not the path of a folder.")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"the path {os.fsencode(path)!r} is not UTF-8 text: rename the folder, or reach it "
            "through a symbolic link."
        ) from None
    return os.path.abspath(os.path.expanduser(path) if path.split("/")[0] == "~" else path)


def file_in(path: str) -> tuple[Storage, str]:
    """Return a file's folder and its name in it, given its path or URI."""
    local = _of_file_uri(path) if "://" in path else path
    folder, slash, name = (path if local is None else local).rpartition("/")
    return Storage(folder or slash or os.curdir), name


def _of_file_uri(root: str) -> str | None:
    """Return the path that a ``file://`` URI means; None for another URI."""
    if not root.startswith("file://"):
        return None
    parts = urlsplit(root)
    whole = parts.path == root.removeprefix(f"file://{parts.netloc}")  # it leaves out line ends
    if parts.netloc not in ("", "localhost") or not whole:
        raise UsageError(
            f"'{root}' is not the URI of a local folder: write `?` as %3F and `#` as %23, or give "
            "the path without file://."
        )
    return unquote(parts.path, errors="surrogateescape")


def _open(root: str, options: str) -> tuple[pafs.FileSystem, str]:
    """Open a bucket's folder; a bucket is connected to once, which takes a round trip."""
    bucket, uri, folder = _parts(root, options)
    if uri not in _checked:
        check_bucket(root, options)
        _checked.add(uri)
    return _bucket(uri), f"{bucket}/{folder}" if folder else bucket


def _parts(root: str, options: str) -> tuple[str, str, str]:
    """The name of a bucket, its URI with the options, and the folder in it."""
    scheme, _, rest = root.partition("://")
    bucket, _, folder = rest.partition("/")
    return bucket, f"{scheme}://{bucket}" + (f"?{options}" if options else ""), folder


def _reopen(uri: str) -> Storage:
    """Open in a worker what its driver has open: the store has answered, and is not asked again.

    One that is silent just then, as on a node that is cut off for a moment, is waited for by
    whatever reads from it; a check would end the run.
    """
    if "://" in uri:
        root, _, options = uri.partition("?")
        _checked.add(_parts(root, options)[1])
    return Storage(uri)


_checked: set[str] = set()  # buckets that answered in this process, or in that of its driver


@lru_cache(maxsize=64)
def _bucket(uri: str) -> pafs.FileSystem:
    return pafs.FileSystem.from_uri(uri)[0]


def sha256(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()
