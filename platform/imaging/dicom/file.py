"""A DICOM file as far as its pixel data: its elements, its transfer syntax, where the pixels lie.

Pixels stay in the file, so that a cine takes the memory of a frame and not its own size. Only
deflated files are unpacked whole, as there is no other way into them.
"""

import io
import logging
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import pydicom
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from echostill.platform.imaging.dicom.codestream import read_codestream
from echostill.platform.imaging.dicom.encapsulation import Piece, read_pieces, split_frames
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError

# Its log quotes header values, which may name a person; what matters of it comes as an error.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

_PIXEL_TAGS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
_PIXEL_TAGS[0x7FE00010] = "PixelData"
_UNDEFINED = 0xFFFFFFFF
_LARGE = 64 * 2**20  # bytes of an element beside the pixels: only volumes of a maker's own have it
_LONG_FORMS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN")  # VRs with a length of 4 bytes
_SHORT_FORMS = (b"AE", b"CS", b"DA", b"LO", b"PN", b"SH", b"TM", b"UI", b"UL", b"US")
_ITEM = b"\xfe\xff\x00\xe0"
_NATIVE = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}
# By the marker of a JPEG's kind.
_JPEG_KINDS = {0xC0: JPEGBaseline8Bit, 0xC1: JPEGExtended12Bit, 0xC3: JPEGLosslessSV1}


@dataclass(frozen=True)
class PixelElement:
    """Where the pixels lie.

    Attributes:
        keyword: ``PixelData``, ``FloatPixelData`` or ``DoubleFloatPixelData``.
        representation: Its VR, ``""`` where the file does not state it.
        source: The file to read them from.
        place: Where in that file, as far as the file reaches.
        encapsulated: Whether they are a row of fragments.
    """

    keyword: str
    representation: str
    source: SourceFile
    place: Piece
    encapsulated: bool


@dataclass(frozen=True)
class DicomFile:
    """An opened file: its elements up to the pixels, and those where it has any."""

    dataset: pydicom.Dataset
    syntax: UID
    pixels: PixelElement | None


def is_dicom(data: bytes) -> bool:
    """Return whether bytes begin as a DICOM file: 128 bytes of preamble, then ``DICM``."""
    return data[128:132] == b"DICM"


def is_bare_dicom(data: bytes) -> bool:
    """Return whether bytes begin as a DICOM data set without preamble.

    The first element is one of group 2 or 8, and a second one follows where it ends.
    """
    for order in "<>":
        first = _element(data, 0, order)
        if first is None or first[0] >> 16 not in (2, 8) or first[0] & 0xFFFF > 0x80:
            continue
        if first[1] >= len(data):
            continue
        second = _element(data, first[1], order)
        if second is not None and first[0] < second[0] < 0x00200000:
            return True
    return False


def _element(data: bytes, start: int, order: str) -> tuple[int, int] | None:
    """Return an element's tag and where the next one begins, None where there is no element."""
    if len(data) < start + 12:
        return None
    group, number = struct.unpack_from(f"{order}HH", data, start)
    representation = data[start + 4 : start + 6]
    if representation in _SHORT_FORMS:
        (length,) = struct.unpack_from(f"{order}H", data, start + 6)
        return group << 16 | number, start + 8 + length
    if representation in (*_LONG_FORMS, b"SQ", b"UT"):
        (length,) = struct.unpack_from(f"{order}I", data, start + 8)
        return group << 16 | number, start + 12 + length
    (length,) = struct.unpack_from(f"{order}I", data, start + 4)
    # Without a VR there is only the length to tell an element by; big endian data sets have VRs.
    return None if order == ">" or length > 2**16 else (group << 16 | number, start + 8 + length)


def open_file(source: SourceFile, limits: Limits) -> DicomFile:
    """Read a file up to its pixel data.

    Raises:
        DecodeError: The file is no DICOM file, or too large.
    """
    head = source.head()
    if not head:
        raise DecodeError("is empty (0 bytes)")
    try:
        with source.opened() as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote header values
            _refuse_bomb(file, head, limits)
            if _is_deflated(head):
                return _unpacked(pydicom.dcmread(file))
            bare = is_bare_dicom(head)
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=bare, defer_size=_LARGE)
            pixels = _pixel_element(source, file, dataset)
            return DicomFile(dataset, _syntax(file, dataset, pixels), pixels)
    except DecodeError:
        raise
    except Exception:  # its text may quote header values too
        raise DecodeError("is not a readable DICOM file") from None


def _is_deflated(head: bytes) -> bool:
    return is_dicom(head) and DeflatedExplicitVRLittleEndian.encode() in head


def _refuse_bomb(file: BinaryIO, head: bytes, limits: Limits) -> None:
    """Refuse a file too large for memory, also one that becomes so when it is unpacked."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size > limits.max_bytes:
        raise DecodeError(f"holds {size} bytes, more than allowed (max_bytes={limits.max_bytes})")
    if not _is_deflated(head):
        return
    # (0002,0000) comes first and says how far the uncompressed file meta information goes.
    file.seek(144 + struct.unpack_from("<I", head, 140)[0])
    unpacked, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not unpacked.eof and (block := unpacked.unconsumed_tail or file.read(2**16)):
        total += len(unpacked.decompress(block, 2**20))
        if total > limits.max_bytes:
            raise DecodeError(f"unpacks to more bytes than allowed (max_bytes={limits.max_bytes})")
    file.seek(0)


def _unpacked(dataset: pydicom.Dataset) -> DicomFile:
    keyword = next((name for name in _PIXEL_TAGS.values() if dataset.get(name)), None)
    pixels = None
    if keyword is not None:
        element = dataset[keyword]
        place = Piece(0, len(element.value))
        held = SourceFile("pixels", data=element.value)
        pixels = PixelElement(keyword, str(element.VR), held, place, encapsulated=False)
    return DicomFile(dataset, DeflatedExplicitVRLittleEndian, pixels)


def _pixel_element(
    source: SourceFile, file: BinaryIO, dataset: pydicom.Dataset
) -> PixelElement | None:
    """Read the header of the element that the reading stopped before."""
    start = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(start)
    head = file.read(12)
    _, little = dataset.original_encoding
    order = "<" if little else ">"
    if len(head) < 8:
        return None
    group, number = struct.unpack_from(f"{order}HH", head)
    keyword = _PIXEL_TAGS.get(group << 16 | number)
    if keyword is None:
        return None
    explicit = head[4:6] in _LONG_FORMS
    if explicit and len(head) < 12:
        return None
    offset = start + (12 if explicit else 8)
    (length,) = struct.unpack_from(f"{order}I", head, 8 if explicit else 4)
    representation = head[4:6].decode() if explicit else ""
    there = end - offset if length == _UNDEFINED else min(length, end - offset)
    if there <= 0:
        return None
    file.seek(offset)
    fragments = length == _UNDEFINED or (
        file.read(4) == _ITEM and _is_compressed(dataset) and there >= 8
    )
    return PixelElement(keyword, representation, source, Piece(offset, there), fragments)


def _is_compressed(dataset: pydicom.Dataset) -> bool:
    stated = _stated_syntax(dataset)
    return stated is not None and not stated.is_private and stated.is_encapsulated


def _stated_syntax(dataset: pydicom.Dataset) -> UID | None:
    meta = getattr(dataset, "file_meta", None)
    stated = None if meta is None else meta.get("TransferSyntaxUID")
    return UID(str(stated).strip()) if stated else None


def _syntax(file: BinaryIO, dataset: pydicom.Dataset, pixels: PixelElement | None) -> UID:
    """Return the transfer syntax: what the file states, unless its pixel data says otherwise.

    A file that states none, or a native one over compressed frames (or the reverse), has lost its
    header on the way: the standard's default is implicit little endian (PS3.5 10.1), and frames
    tell themselves what they are.
    """
    stated = _stated_syntax(dataset)
    native = _NATIVE.get(dataset.original_encoding, ImplicitVRLittleEndian)
    if pixels is None:
        return stated or native
    if stated is not None and (stated.is_private or not stated.is_transfer_syntax):
        return stated
    if stated is None or stated.is_encapsulated != pixels.encapsulated:
        return _syntax_of_frames(file, pixels) if pixels.encapsulated else native
    return stated


def _syntax_of_frames(file: BinaryIO, pixels: PixelElement) -> UID:
    frame = read_pieces(file, split_frames(file, pixels.place, 1)[0][:1])
    try:
        inside = read_codestream(frame)
    except DecodeError:
        raise DecodeError(
            "does not state its transfer syntax (0002,0010), and its compressed frames do not tell "
            "it: they are no JPEG, JPEG-LS or JPEG 2000"
        ) from None
    if inside.kind == "jpeg":
        return _JPEG_KINDS.get(inside.process, JPEGBaseline8Bit)
    return JPEG2000Lossless if inside.kind == "jpeg-2000" else JPEGLSLossless
