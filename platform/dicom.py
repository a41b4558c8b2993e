"""DICOM files to frames: one frame in memory at a time, in the colours the file means.

Header values that name a person are kept out of every message and of every ``repr``.
"""

import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi_lut,
    get_decoder,
    iter_pixels,
)

from echostill.platform.images import MAX_PIXELS, DecodeError, check_size, scale_to_bytes

_PIXEL_ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


@dataclass(frozen=True)
class Region:
    """An ultrasound region (PS3.3 C.8.5.5): what its rectangle shows; bounds are inclusive."""

    left: int
    top: int
    right: int
    bottom: int
    spatial_format: int  # 1 two-dimensional, 2 M-mode, 3 spectral, 4 wave form, 5 graphics
    data_type: int  # 1 tissue, 2 colour flow, 3 and 4 spectral Doppler, 5 and more traces and bars


@dataclass(frozen=True)
class DicomHeader:
    """What the pipeline uses of a DICOM header; a missing value is an empty string."""

    sop_instance_uid: str
    study_instance_uid: str
    patient_id: str = field(repr=False)
    organ: str  # BodyPartExamined in lower case
    device: str  # ManufacturerModelName
    frames: int
    manufacturer: str = ""  # never stored: to tell scanners apart
    regions: tuple[Region, ...] = ()


@dataclass(frozen=True)
class Frame:
    """One frame: uint8 ``pixels`` (H, W) or (H, W, 3), or the ``error`` that kept it back."""

    index: int
    pixels: np.ndarray | None
    error: DecodeError | None = None


def is_dicom(data: bytes) -> bool:
    """Return whether bytes begin as a DICOM file: 128 bytes of preamble, then ``DICM``."""
    return data[128:132] == b"DICM"


def read_frames(
    source: str | PathLike[str] | bytes, *, stride: int = 1, max_pixels: float = MAX_PIXELS
) -> tuple[DicomHeader, Iterator[Frame]]:
    """Open a DICOM file; its frames are decoded one by one as they are asked for.

    Palettes and YBR become RGB, MONOCHROME1 is inverted, values of more than 8 bits go through the
    rescale and the window (or, without a window, the frame's own range). A damaged frame is yielded
    with its error and does not stop those after it.

    Args:
        source: Path or bytes of the file.
        stride: Read every ``stride``-th frame, from the first.
        max_pixels: Refuse larger frames.

    Returns:
        The header and an iterator of frames.

    Raises:
        DecodeError: The file is no DICOM file, holds no pixel data, is too large, or needs a
            decoder that is not installed.
    """
    dataset = _open(source)
    header = _header(dataset)
    check_size(int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0), max_pixels)
    _check_decoder(dataset)
    return header, _frames(dataset, range(0, header.frames, stride))


def _open(source: str | PathLike[str] | bytes) -> pydicom.Dataset:
    if isinstance(source, bytes) and not source:
        raise DecodeError("is empty (0 bytes)")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        # pydicom's warnings quote header values, which may name a person.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(file)
            held = [name for name in _PIXEL_ELEMENTS if dataset.get(name)]
    except FileNotFoundError:
        raise DecodeError("does not exist") from None
    except Exception as error:  # its text may quote header values too
        raise DecodeError(f"is not a readable DICOM file ({type(error).__name__})") from None
    if not held:
        raise DecodeError("holds no pixel data")
    return dataset


def _header(dataset: pydicom.Dataset) -> DicomHeader:
    def text(keyword: str) -> str:
        value = dataset.get(keyword)
        return "" if value is None else str(value).strip()

    try:
        frames = int(dataset.get("NumberOfFrames") or 1)
    except (TypeError, ValueError):
        raise DecodeError("states a number of frames that is no number") from None
    return DicomHeader(
        sop_instance_uid=text("SOPInstanceUID"),
        study_instance_uid=text("StudyInstanceUID"),
        patient_id=text("PatientID"),
        organ=_unless_named(text("BodyPartExamined"), dataset).lower(),
        device=_unless_named(text("ManufacturerModelName"), dataset),
        frames=max(frames, 1),
        manufacturer=text("Manufacturer"),
        regions=tuple(_regions(dataset)),
    )


_PERSONAL = (
    "PatientName", "PatientID", "OtherPatientNames", "PatientBirthName", "PatientBirthDate",
    "AccessionNumber", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName",
)  # fmt: skip


def _unless_named(value: str, dataset: pydicom.Dataset) -> str:
    """Return a technical value, or nothing where it repeats a word of a personal one.

    What is kept of a header is free text, and people write into the wrong fields.
    """
    personal = " ".join(str(dataset.get(keyword) or "") for keyword in _PERSONAL)
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


def _check_decoder(dataset: pydicom.Dataset) -> None:
    """Refuse a transfer syntax that cannot be decoded here, with the packages that could."""
    meta = getattr(dataset, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta is not None else None
    if syntax is None:
        raise DecodeError("does not state its transfer syntax (0002,0010)")
    if not syntax.is_encapsulated:
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DecodeError(f"has the transfer syntax '{syntax.name}', which is not read") from None
    if not decoder.is_available:
        needed = "; or ".join(
            text.split(" - requires ")[-1] for text in decoder.missing_dependencies
        )
        raise DecodeError(
            f"has the transfer syntax '{syntax.name}', whose decoder is not installed: "
            f"pip install {needed.replace('gdcm>=', 'python-gdcm>=').replace(' and ', ' ')}"
        )


def _frames(dataset: pydicom.Dataset, indices: range) -> Iterator[Frame]:
    position = 0
    while position < len(indices):
        # One iterator over all frames that are left; a bad one ends it, so begin again after it.
        raw = iter_pixels(dataset, indices=indices[position:])
        while position < len(indices):
            index = indices[position]
            position += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    values = next(raw)
                    frame = Frame(index, _display(values, dataset))
            except StopIteration:
                yield Frame(index, None, DecodeError("ends before this frame"))
                break
            except DecodeError as error:
                yield Frame(index, None, error)
            except Exception as error:
                reason = " ".join(str(error).split())
                yield Frame(index, None, DecodeError(f"cannot be decoded: {reason}"))
                break
            else:
                yield frame


def _display(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Turn a frame's stored values into what a viewer shows, uint8 (H, W) or (H, W, 3)."""
    photometric = str(dataset.get("PhotometricInterpretation") or "")
    if photometric == "PALETTE COLOR":
        return _colour(values, dataset)
    if photometric.startswith("MONOCHROME"):
        shown = _window(values, dataset)
        return 255 - shown if photometric == "MONOCHROME1" else shown
    # pydicom has turned the YBR kinds into RGB; JPEG 2000's come out of the decoder as RGB.
    if values.ndim != 3 or values.shape[2] != 3:
        raise DecodeError(
            f"has the photometric interpretation '{photometric}' with pixels of shape "
            f"{values.shape}, which is not read"
        )
    return values if values.dtype == np.uint8 else scale_to_bytes(values)


def _colour(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Look a frame up in its palette; a palette of greys gives a grey picture."""
    entries, first = (int(value) for value in dataset.RedPaletteColorLookupTableDescriptor[:2])
    stored = np.arange(first, first + (entries or 2**16), dtype=np.int64)
    palette = apply_color_lut(stored[None], dataset)[0]
    # Entries of 16 bits hold the 8-bit value in the high byte (PS3.3 C.7.6.3.1.6), but some
    # writers leave it in the low one.
    if palette.dtype != np.uint8:
        palette = (palette >> 8 if palette.max() > 255 else palette).astype(np.uint8)
    shown = palette[np.clip(values.astype(np.int64) - first, 0, len(palette) - 1)]
    grey = bool((shown[..., :1] == shown).all())
    return np.ascontiguousarray(shown[..., 0]) if grey else shown


def _window(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    if values.dtype == np.uint8 and int(dataset.get("BitsStored") or 8) == 8:
        return values  # already what the scanner showed
    rescaled = apply_modality_lut(values, dataset)
    if dataset.get("VOILUTSequence"):
        table = apply_voi_lut(rescaled.astype(values.dtype), dataset)
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return np.rint(table * (255 / (2**bits - 1))).astype(np.uint8)
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if centre is None or width is None or width <= 0:
        return scale_to_bytes(rescaled)
    kind = str(dataset.get("VOILUTFunction") or "LINEAR")
    shown = window_fraction(rescaled.astype(np.float64), centre, width, kind)
    return np.rint(shown * 255).astype(np.uint8)


def window_fraction(values: np.ndarray, centre: float, width: float, kind: str) -> np.ndarray:
    """Map values through a window to 0..1 (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: Rescaled values, any shape.
        centre: Window Center.
        width: Window Width, above 0.
        kind: VOI LUT Function: LINEAR, LINEAR_EXACT or SIGMOID.
    """
    if kind == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if kind == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)
