"""A file to read, wherever it lies: on disk, in a bucket, or in memory out of an archive."""

import contextlib
import hashlib
import io
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO, cast

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
