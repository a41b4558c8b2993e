"""A file to read, wherever it lies: on disk, in a bucket, or in memory out of an archive."""

import bisect
import contextlib
import hashlib
import io
import itertools
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, cast

from echostill.platform.imaging.images import DecodeError
from echostill.platform.tables.storage import Storage

HEAD = 4096  # bytes that tell what a file is
IN_MEMORY = 64 * 2**20
_BLOCK = 4 * 2**20


@dataclass(frozen=True)
class SourceFile:
    """A readable file.

    Attributes:
        name: What the file is called; its suffix may tell what it is.
        location: Absolute path or URI; empty for bytes.
        data: The bytes, where the file is in memory.
    """

    name: str
    location: str = ""
    data: bytes | None = field(default=None, repr=False)

    @contextlib.contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Open the file for reading and seeking.

        Raises:
            DecodeError: It does not exist, is no regular file, or cannot be read.
        """
        with _in_words():
            file = self._open()
        try:
            yield file
        finally:
            file.close()

    def head(self) -> bytes:
        """Return the first bytes."""
        if self.data is not None:
            return self.data[:HEAD]
        with self.opened() as file, _in_words():
            return file.read(HEAD)

    def read(self, max_bytes: float = float("inf")) -> bytes:
        """Return all bytes.

        Raises:
            DecodeError: There are more than ``max_bytes``, or the file cannot be read.
        """
        data = self.data
        if data is None:
            with self.opened() as file, _in_words():
                data = file.read() if max_bytes == float("inf") else file.read(int(max_bytes) + 1)
        if len(data) > max_bytes:
            raise DecodeError(f"holds more bytes than allowed (max_bytes={max_bytes:.0f})")
        return data

    def loaded(self, largest: int = IN_MEMORY) -> "SourceFile":
        """Return the file with its bytes, fetched at once, or itself where it is larger.

        Every look at a file costs a request where it lies in a bucket.
        """
        if self.data is not None:
            return self
        with self.opened() as file, _in_words():
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            return self if size > largest else replace(self, data=file.read())

    def sha256(self) -> str:
        """Return the hexadecimal SHA-256 of the bytes, read piece by piece."""
        if self.data is not None:
            return hashlib.sha256(self.data).hexdigest()
        hasher = hashlib.sha256()
        with self.opened() as file, _in_words():
            while block := file.read(_BLOCK):
                hasher.update(block)
        return hasher.hexdigest()

    def _open(self) -> BinaryIO:
        if self.data is not None:
            return io.BytesIO(self.data)
        if "://" in self.location:
            storage, key = bucket_of(self.location)
            # Arrow asks the bucket for every read, however small.
            return io.BufferedReader(cast(io.RawIOBase, storage.open(key)), _BLOCK)
        path = existing_form(self.location)
        # Opening a pipe would wait for ever, so look before.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DecodeError("is not a regular file")
        return open(path, "rb")


@dataclass(frozen=True)
class FileParts(SourceFile):
    """Parts of a file, read as one file of their own: a film inside a DICOM file.

    Attributes:
        whole: The file.
        parts: Where in it each part begins, and how many bytes the part has.
    """

    whole: SourceFile = field(default_factory=lambda: SourceFile(""))
    parts: tuple[tuple[int, int], ...] = ()

    def _open(self) -> BinaryIO:
        joined = _JoinedParts(self.whole._open(), self.parts)
        return io.BufferedReader(cast(io.RawIOBase, joined), _BLOCK)


class _JoinedParts(io.RawIOBase):
    """A stream over parts of another one, which it closes with itself."""

    def __init__(self, file: BinaryIO, parts: Sequence[tuple[int, int]]) -> None:
        self._file, self._parts = file, parts
        self._begins = [0, *itertools.accumulate(length for _, length in parts)]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._begins[-1]}
        self._position = max(0, start[whence] + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._begins[-1]:
            return 0
        part = bisect.bisect_right(self._begins, self._position) - 1
        within = self._position - self._begins[part]
        offset, length = self._parts[part]
        self._file.seek(offset + within)
        data = self._file.read(min(len(buffer), length - within))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def existing_form(path: str) -> str:
    """Return a path, or its other Unicode form where only that exists.

    macOS writes 'é' as two characters into an archive, and a manifest written elsewhere as one.
    """
    if not os.path.lexists(path):
        for form in ("NFC", "NFD"):
            other = unicodedata.normalize(form, path)
            if os.path.lexists(other):
                return other
    return path


def with_options_first(uri: str) -> str:
    """Move a URI's options to its bucket, where names can follow them.

    ``s3://bucket/folder?region=x`` becomes ``s3://bucket?region=x/folder``.
    """
    found = re.fullmatch(r"(\w+://[^/?]+)(/.*)?(\?\w+=[^/]*)", uri)
    return f"{found[1]}{found[3]}{found[2] or ''}" if found else uri


def bucket_of(uri: str) -> tuple[Storage, str]:
    """Split a URI into its bucket (with options) and the key, which may hold what URIs may not."""
    scheme, _, rest = uri.partition("://")
    if scheme == "file":
        return Storage("/"), rest.lstrip("/")
    bucket, _, key = rest.partition("/")
    return Storage(f"{scheme}://{bucket}"), key


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DecodeError("does not exist") from None
    except OSError as error:
        # Arrow's messages name the bucket and the key: the row's source says that already.
        reason = (error.strerror or type(error).__name__).split(". Detail:")[0]
        raise DecodeError(f"cannot be read: {reason}") from None
