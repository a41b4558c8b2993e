"""DICOM files to frames: one frame in memory at a time, in the colours the file means.

Header values that name a person are kept out of every message and of every ``repr``.
"""

import contextlib
import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pydicom
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from echostill.platform.imaging.dicom.colours import display
from echostill.platform.imaging.dicom.decoding import FrameDecoder
from echostill.platform.imaging.dicom.encapsulation import split_frames
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Frame, Limits
from echostill.platform.imaging.header import DicomHeader, Region
from echostill.platform.imaging.images import DecodeError, check_size
from echostill.platform.imaging.reader import Reader
from echostill.platform.imaging.video import open_video

# Its log quotes header values, which may name a person; what matters of it comes as an error.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

_PIXEL_ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_FILM_SYNTAXES = "1.2.840.10008.1.2.4.10"  # MPEG-2, MPEG-4 and HEVC: a film in one piece
_FIRST_GROUPS = (b"\x02\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00", b"\x08\x00\x16\x00")


def is_dicom(data: bytes) -> bool:
    """Return whether bytes begin as a DICOM file: 128 bytes of preamble, then ``DICM``."""
    return data[128:132] == b"DICM"


def is_bare_dicom(data: bytes) -> bool:
    """Return whether bytes begin as a DICOM file of old, without preamble."""
    return data[:4] in _FIRST_GROUPS


def open_dicom(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open a DICOM file; its frames are decoded one by one as they are asked for.

    Palettes and YBR become RGB, MONOCHROME1 is inverted, values of more than 8 bits go through the
    rescale and the window (or, without a window, the frame's own range). A damaged frame comes with
    its error and does not stop those after it.

    Returns:
        The clip, with its header. It has the frames that are there: a file that states more gives
        one error more, one that states fewer gives all.

    Raises:
        DecodeError: The file is no DICOM file, holds no pixel data, is too large, or needs a
            decoder that is not installed.
    """
    limits = limits or Limits()
    dataset = _open(source, limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote header values
        header = _header(dataset)
    check_size(int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0), limits.max_pixels)
    syntax = _syntax(dataset)
    if str(syntax).startswith(_FILM_SYNTAXES):
        with _in_words():
            fragments = split_frames(dataset.PixelData, 1)[0]
        film = open_video(SourceFile("film", data=b"".join(fragments)), limits)
        return Clip(film.frames, film.decode, header)
    with _in_words():
        decoder = FrameDecoder(dataset, syntax, header.frames)
    if decoder.held > limits.max_frames:
        raise DecodeError(
            f"holds {decoder.held} frames, more than allowed (max_frames={limits.max_frames})"
        )

    def decode(indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            if index >= decoder.held:
                said = f"holds {decoder.held} of the {header.frames} frames that it states"
                yield Frame(index, None, DecodeError(said))
                return
            try:
                with _in_words():
                    values, photometric = decoder.decode(index)
                    pixels = display(values, photometric, dataset)
                yield Frame(index, pixels)
            except DecodeError as error:
                yield Frame(index, None, error)

    # One frame more than there are stands for all that are missing, and says so.
    missing = header.frames > decoder.held
    return Clip(decoder.held + missing, decode, header)


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Turn the errors of pydicom and its decoders into ours, and drop its warnings.

    Warnings quote header values, which may name a person. On damaged bytes decoders raise every
    kind of error; theirs are about the codestream.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DecodeError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).removeprefix(
            "Unable to decode as exceptions were raised by all available plugins: "
        )
        raise DecodeError(f"cannot be decoded: {reason}") from None


def _open(source: SourceFile, limits: Limits) -> pydicom.Dataset:
    head = source.head()
    if not head:
        raise DecodeError("is empty (0 bytes)")
    try:
        with source.opened() as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote header values
            _refuse_bomb(file, head, limits)
            dataset = pydicom.dcmread(file, force=is_bare_dicom(head))
            held = [name for name in _PIXEL_ELEMENTS if dataset.get(name)]
    except DecodeError:
        raise
    except Exception as error:  # its text may quote header values too
        raise DecodeError(f"is not a readable DICOM file ({type(error).__name__})") from None
    if not held:
        cut = "Rows" in dataset and not any(name in dataset for name in _PIXEL_ELEMENTS)
        raise DecodeError("holds no pixel data" + (", or ends before it" if cut else ""))
    return dataset


def _refuse_bomb(file: BinaryIO, head: bytes, limits: Limits) -> None:
    """Refuse a file too large for memory, also one that becomes so when it is unpacked."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size > limits.max_bytes:
        raise DecodeError(f"holds {size} bytes, more than allowed (max_bytes={limits.max_bytes})")
    if not is_dicom(head) or DeflatedExplicitVRLittleEndian.encode() not in head:
        return
    # (0002,0000) comes first and says how far the uncompressed file meta information goes.
    file.seek(144 + struct.unpack_from("<I", head, 140)[0])
    unpacked, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not unpacked.eof and (block := unpacked.unconsumed_tail or file.read(2**16)):
        total += len(unpacked.decompress(block, 2**20))
        if total > limits.max_bytes:
            raise DecodeError(f"unpacks to more bytes than allowed (max_bytes={limits.max_bytes})")
    file.seek(0)


def _header(dataset: pydicom.Dataset) -> DicomHeader:
    def text(keyword: str) -> str:
        value = dataset.get(keyword)
        return "" if value is None else str(value).strip()

    try:
        frames = int(dataset.get("NumberOfFrames") or 1)
    except (TypeError, ValueError):
        raise DecodeError("states a number of frames that is no number") from None
    if frames < 1:
        raise DecodeError(f"states {frames} frames")
    image_type = dataset.get("ImageType") or ()
    return DicomHeader(
        sop_instance_uid=text("SOPInstanceUID"),
        study_instance_uid=text("StudyInstanceUID"),
        patient_id=text("PatientID"),
        organ=_unless_named(text("BodyPartExamined"), dataset).lower(),
        device=_unless_named(text("ManufacturerModelName"), dataset),
        frames=frames,
        image_type=(image_type,) if isinstance(image_type, str) else tuple(image_type),
        regions=tuple(_regions(dataset)),
        manufacturer=text("Manufacturer"),
    )


_PERSONAL = (
    "PatientName", "PatientID", "OtherPatientNames", "PatientBirthName", "PatientBirthDate",
    "AccessionNumber", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName",
)  # fmt: skip


def _unless_named(value: str, dataset: pydicom.Dataset) -> str:
    """Return a technical value, or nothing where it repeats a word of a personal one.

    What is kept of a header is free text, and people write into the wrong fields.
    """
    personal = ""
    for keyword in _PERSONAL:
        try:
            personal += f" {dataset.get(keyword) or ''}"
        except Exception:  # a value that cannot be read: the pool is not to fail for want of it
            return ""
    words = {word for word in re.split(r"[\W_]+", personal.casefold()) if len(word) > 2}
    return "" if words & set(re.split(r"[\W_]+", value.casefold())) else value


def _regions(dataset: pydicom.Dataset) -> Iterator[Region]:
    for item in dataset.get("SequenceOfUltrasoundRegions") or ():
        numbers = [
            item.get(keyword)
            for keyword in (
                "RegionLocationMinX0",
                "RegionLocationMinY0",
                "RegionLocationMaxX1",
                "RegionLocationMaxY1",
                "RegionSpatialFormat",
                "RegionDataType",
            )
        ]
        if all(isinstance(number, int) for number in numbers):
            yield Region(*numbers)


def _syntax(dataset: pydicom.Dataset) -> UID:
    meta = getattr(dataset, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta is not None else None
    if syntax is None:
        raise DecodeError("does not state its transfer syntax (0002,0010)")
    return syntax


def _sniff(head: bytes) -> bool:
    return is_dicom(head) or is_bare_dicom(head)


READER = Reader(
    name="dicom",
    suffixes=(".dcm", ".dicom"),
    sniff=_sniff,
    open=open_dicom,
    title="DICOM",
    reads="see below",
    notes="one frame in memory at a time",
)
