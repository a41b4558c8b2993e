"""Single files that are packed: ``.dcm.gz``, ``.png.xz``, ``.nii.bz2``, unpacked into memory."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from typing import Any

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError

PACKED_SUFFIXES = (".gz", ".xz", ".bz2")

_BLOCK = 2**20
_SOME = 2**14  # bytes that are unpacked to look at
_DAMAGE = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)
_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ\0": lzma.open,
    b"BZh": bz2.open,
}
_PEEKERS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),
    b"\xfd7zXZ\0": lzma.LZMADecompressor,
    b"BZh": bz2.BZ2Decompressor,
}


def is_packed(head: bytes) -> bool:
    """Return whether a file's first bytes are those of gzip, xz or bzip2."""
    return head.startswith(tuple(_OPENERS))


def unpacked_head(head: bytes) -> bytes:
    """Return a file's first bytes, of one that is packed those inside as far as they are told."""
    peeker = next((make() for magic, make in _PEEKERS.items() if head.startswith(magic)), None)
    if peeker is None:
        return head
    try:
        return bytes(peeker.decompress(head, _SOME))
    except _DAMAGE:
        return b""


def inner_name(name: str) -> str:
    """Return a packed file's name without the suffix that says so."""
    suffix = next((one for one in PACKED_SUFFIXES if name.lower().endswith(one)), "")
    return name.removesuffix(name[-len(suffix) :]) if suffix else name


def unpacked(source: SourceFile, limits: Limits) -> SourceFile:
    """Unpack a file into memory.

    Raises:
        DecodeError: It is damaged, or larger than allowed when it is unpacked.
    """
    head = source.head()
    pieces, size = [], 0
    with source.opened() as file:
        try:
            opener = next(make for magic, make in _OPENERS.items() if head.startswith(magic))
            with opener(file) as stream:
                while piece := stream.read(_BLOCK):
                    pieces.append(piece)
                    size += len(piece)
                    if size > limits.max_bytes:
                        break
        except _DAMAGE:
            raise DecodeError("is a damaged or truncated packed file") from None
    if size > limits.max_bytes:
        raise DecodeError(f"unpacks to more bytes than allowed (max_bytes={limits.max_bytes})")
    return SourceFile(inner_name(source.name), data=b"".join(pieces))
