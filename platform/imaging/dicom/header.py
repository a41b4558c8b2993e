"""What the pipeline uses of a DICOM file's elements, beside its pixels.

Values that name a person are kept out of every message and of every ``repr``.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import pydicom
from pydicom.multival import MultiValue

from echostill.platform.imaging.header import DicomHeader, Region
from echostill.platform.imaging.images import DecodeError, square_size

_LEAST_REGION = 8  # pixels of a side: a smaller rectangle shows nothing, writers leave such behind


def read_header(dataset: pydicom.Dataset) -> DicomHeader:
    """Read the header; a value that is missing becomes an empty one.

    Raises:
        DecodeError: The number of frames cannot be one.
    """

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
        issuer=text("IssuerOfPatientID"),
        identifying=", ".join(_identifying(text)),
    )


_IDENTIFYING = {
    "BurnedInAnnotation": "burned-in annotation",
    "RecognizableVisualFeatures": "recognizable visual features",
}


def _identifying(text: Callable[[str], str]) -> Iterator[str]:
    """Name what identifies the patient, as the file states: any value but NO (PS3.3 C.7.6.1)."""
    for keyword, name in _IDENTIFYING.items():
        if text(keyword).upper() not in ("", "NO"):
            yield name


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
        if not all(isinstance(number, int) for number in numbers):
            continue
        region = Region(*numbers)
        sides = region.right - region.left, region.bottom - region.top
        # A rectangle with nothing in it says no more than that somebody filled in a form.
        if not 0 < min(sides) < _LEAST_REGION - 1:
            yield region


def stretched(header: DicomHeader, rows: int, columns: int, aspect: float) -> DicomHeader:
    """Return a header whose regions fit the frame after its pixels were made square."""
    height, width = square_size(rows, columns, aspect)
    if (height, width) == (rows, columns):
        return header
    down, across = height / rows, width / columns
    regions = (
        replace(
            region,
            left=round(region.left * across),
            top=round(region.top * down),
            right=round((region.right + 1) * across) - 1,
            bottom=round((region.bottom + 1) * down) - 1,
        )
        for region in header.regions
    )
    return replace(header, regions=tuple(regions))


def pixel_aspect(dataset: pydicom.Dataset) -> float:
    """Return a pixel's height divided by its width, 1 where the file says nothing.

    The spacing of pixels counts first, a frame's or the file's, then Pixel Aspect Ratio.
    """
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    measures = [item for group in shared[:1] for item in group.get("PixelMeasuresSequence") or ()]
    for holder, keyword in (
        *((item, "PixelSpacing") for item in measures),
        (dataset, "PixelSpacing"),
        (dataset, "PixelAspectRatio"),
    ):
        pair = holder.get(keyword)
        if isinstance(pair, MultiValue) and len(pair) == 2:
            try:
                down, across = (float(value) for value in pair)
            except (TypeError, ValueError):
                continue
            if down > 0 and across > 0:
                return down / across
    return 1.0
