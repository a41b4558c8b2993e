"""From one source file to pool rows: frames decoded, de-identified, staged.

:func:`read_source` reads one of the files that :mod:`echostill.curation.ingestion.listing` lists.
Whatever is wrong with a file becomes a :class:`Failure` of that file, or of one frame, and stops
nothing else.
"""

import hashlib
import hmac
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from echostill.curation.deidentification.brightness import Brightness
from echostill.curation.deidentification.frames import DeidentifySettings, Scanner, deidentify
from echostill.curation.deidentification.pseudonyms import keyed_hash
from echostill.curation.deidentification.review import NEEDS_REVIEW, Desk
from echostill.curation.ingestion.archives import Member, read_archive
from echostill.curation.ingestion.manifests import portable_name
from echostill.curation.ingestion.perceptual import perceptual_columns
from echostill.curation.ingestion.quality import QualitySettings, quality_columns
from echostill.platform.config import Config
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.imaging.containers import ARCHIVE_SUFFIXES, container_of, open_clip
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import FrameSampling, Limits
from echostill.platform.imaging.header import DicomHeader
from echostill.platform.imaging.images import (
    MAX_PIXELS,
    DecodeError,
    content_hash,
    drop_equal_channels,
    encode,
    resize_longest,
)
from echostill.platform.imaging.modality import modality

KEY_VARIABLE = "ECHOSTILL_KEY"


class IngestSettings(Config):
    """What is read, and how files become rows."""

    source: str | tuple[str, ...] = Field(
        (),
        description="Folder, list (.txt), manifest (.csv, .parquet, .jsonl), archive (.tar) or "
        "file; one or several.",
    )
    exclude: tuple[str, ...] = Field(
        (), description="Manifests (of benchmarks) whose files are left out, by content."
    )
    recursive: bool = Field(True, description="Read the folders inside a folder too.")
    root: str | None = Field(
        None, description="Where a list's relative paths begin; default the list's own folder."
    )
    group_pattern: str | None = Field(
        None,
        description="Regular expression searched in a file's name; its first group (or all of the "
        "match) is the patient, study or clip.",
    )
    organ: str = Field("", description="Organ of the files that name none.")
    device: str = Field("", description="Device of the files that name none.")
    frames: FrameSampling = Field(
        FrameSampling(), description="Which frames of a cine are kept; default all."
    )
    stage_side: int = Field(256, description="Longest side of a staged image, in pixels.", ge=16)
    stage_codec: Literal["png", "jpeg", "webp"] = Field(
        "png", description="Format of a staged image; PNG is lossless."
    )
    stage_quality: int = Field(90, description="Quality of staged JPEG and WebP.", ge=1, le=100)
    max_pixels: int = Field(MAX_PIXELS, description="Refuse larger pictures.", ge=1)
    max_frames: int = Field(100_000, description="Refuse files with more frames.", ge=1)
    max_bytes: int = Field(
        4 * 2**30, description="Refuse files that need more memory to be read or unpacked.", ge=1
    )
    quality: QualitySettings = QualitySettings()
    key_file: str | None = Field(
        None,
        description=f"File with the secret key for identifiers; {KEY_VARIABLE} does the same.",
    )
    deidentify: DeidentifySettings = DeidentifySettings()

    @field_validator("group_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @property
    def limits(self) -> Limits:
        """What one file may ask for."""
        return Limits(self.max_pixels, self.max_frames, self.max_bytes)

    @property
    def hides_names(self) -> bool:
        """Whether names of files, groups and ids of the user's become keyed hashes."""
        chosen = self.deidentify.sources
        return chosen == "hashed" or (chosen == "auto" and read_key(self) is not None)


@dataclass(frozen=True)
class Source:
    """One file to read: where it is, and what the user said about it."""

    file: str  # absolute path or URI
    name: str  # path relative to its root: ids depend on it, never on where the root is
    id: str = ""  # the user's own
    group: str = ""
    patient: str = field(default="", repr=False)  # becomes the group, under the key
    organ: str = ""
    device: str = ""
    label: str = ""
    problem: str = ""  # why it must not be read; it then becomes a failure
    size: int = 0  # in bytes, where it tells how many frames to expect
    skip: tuple[str, ...] = ()  # members of an archive that are left out


@dataclass(frozen=True)
class Failure:
    """A file or frame that gave no row, with the reason in words."""

    source: str
    id: str
    error_class: str
    message: str

    def row(self, stage: str = "ingest") -> dict[str, str]:
        """Return the row of the quarantine table."""
        return {
            "stage": stage,
            "id": self.id,
            "source": self.source,
            "error_class": self.error_class,
            "message": self.message,
        }


Row = dict[str, Any]


def read_source(
    source: Source, settings: IngestSettings, key: bytes | None = None, desk: Desk | None = None
) -> list[Row | Failure]:
    """Read one source: its pool rows, and a failure for each frame (or the file) without one.

    Args:
        source: What to read.
        settings: How.
        key: For identifiers; default the user's. Without one DICOM identifiers are plain hashes and
            patients make no groups, which is for readers that store none of it.
        desk: Knows the frames that have been approved, and keeps pictures for review.

    Returns:
        The entries in the order of the frames; none only where an archive holds nothing but what is
        left out.

    Raises:
        UsageError: The key file is missing or empty: that concerns every file.
    """
    return list(stream_source(source, settings, key, desk))


def stream_source(
    source: Source, settings: IngestSettings, key: bytes | None = None, desk: Desk | None = None
) -> Iterator[Row | Failure]:
    """Do as :func:`read_source` does, one entry at a time."""
    key = key or read_key(settings)
    reading = _Reading(settings, key, desk or Desk(), settings.hides_names)
    if source.problem:
        yield Failure(source.name, source.name, "ListingError", source.problem)
        return
    file = SourceFile(source.name, source.file)
    try:
        if not source.name.lower().endswith(ARCHIVE_SUFFIXES):
            file = file.loaded()
        head = file.head()
        if head and container_of(head, source.name) == "archive":
            yield from _archive_rows(source, file, reading)
        else:
            yield from _file_rows(source, file, reading)
    except Exception as error:
        yield _failure(source.name, source.name, error)


@dataclass(frozen=True)
class _Reading:
    settings: IngestSettings
    key: bytes | None
    desk: Desk
    hides_names: bool


def _archive_rows(source: Source, file: SourceFile, reading: _Reading) -> Iterator[Row | Failure]:
    found = False
    for member in read_archive(file, reading.settings.limits):
        found = True
        if member.name in source.skip:
            continue
        inner = replace(source, file="", name=member_name(source, member))
        try:
            yield from _member_rows(inner, member, reading)
        except Exception as error:
            yield _failure(inner.name, inner.name, error)
    if not found:
        raise DecodeError("is an archive without images")


def member_name(archive: Source, member: Member) -> str:
    """Return what a member of an archive is called as a source."""
    return f"{archive.name}/{portable_name(member.name)}"


def _member_rows(source: Source, member: Member, reading: _Reading) -> Iterator[Row | Failure]:
    if member.data is None:
        raise DecodeError(member.problem)
    told = member.told
    source = replace(
        source,
        id=told.get("id", ""),
        group=told.get("group", ""),
        patient=told.get("patient", ""),
        organ=told.get("organ") or source.organ,
        device=told.get("device") or source.device,
        label=told.get("label") or source.label,
    )
    yield from _file_rows(source, SourceFile(source.name, data=member.data), reading)


def _file_rows(source: Source, file: SourceFile, reading: _Reading) -> Iterator[Row | Failure]:
    settings, key, desk = reading.settings, reading.key, reading.desk
    clip = open_clip(file, settings.limits)
    header = clip.header
    identity = _Identity(source, file, header, clip.frames, reading)
    group = source.group or patient_group(source.patient, key) or _pattern_group(source, settings)
    if not group and header is not None:
        group = _dicom_group(header, key)
    group = group or identity.file_id
    scanner = Scanner(model=source.device or settings.device)
    if header is not None:
        scanner = Scanner(header.manufacturer, header.device)
        # What the user said comes first, then what the file says, then the configured default.
        source = replace(
            source,
            organ=source.organ or settings.organ or header.organ,
            device=source.device or settings.device or header.device,
        )
    # A cine's sector is looked for on its first frames: these are held meanwhile, not the clip.
    frames, ahead = itertools.tee(settings.frames.read(clip))
    pixels = (frame.pixels for frame in ahead)
    regions = () if header is None else header.regions
    all_cleaned = deidentify(pixels, regions, settings.deidentify, scanner)
    for frame, cleaned in zip(frames, all_cleaned, strict=True):
        image_id = identity.of_frame(frame.index)
        name = f"{source.name}#{frame.index}" if clip.frames > 1 else source.name
        if frame.pixels is None:
            what = "frame" if clip.frames > 1 else "file"
            yield _failure(name, image_id, frame.error or DecodeError("is missing"), what)
            continue
        desk.look(image_id, frame.pixels, cleaned)
        # Cleaned pixels are staged, or the frame is held back; never the pixels as they were.
        if cleaned.pixels is None or not desk.passes(image_id, cleaned):
            yield Failure(name, image_id, NEEDS_REVIEW, cleaned.verdict.describe())
            continue
        named = replace(source, name=name)
        yield _row(named, settings, cleaned.pixels, header, image_id, group, frame.index)


class _Identity:
    """Ids of a file's frames: the user's, the DICOM instance's, or from name and content.

    The first two may be known to others, who could find them by trying: they go under the key, the
    user's own where names are hidden.
    """

    def __init__(
        self,
        source: Source,
        file: SourceFile,
        header: DicomHeader | None,
        frames: int,
        reading: _Reading,
    ) -> None:
        self._source, self._file, self._header, self._frames = source, file, header, frames
        self._key = reading.key
        self._hides_names = reading.hides_names
        self._file_id = ""

    @property
    def file_id(self) -> str:
        if not self._file_id:
            self._file_id = digest("file", self._source.name, self._file.sha256())
        return self._file_id

    def of_frame(self, index: int) -> str:
        if self._source.id:
            own = digest("id", self._source.id, *([str(index)] if self._frames > 1 else []))
            return keyed_hash(self._key, "id", own) if self._key and self._hides_names else own
        if self._header is not None:
            origin = self._header.sop_instance_uid or self.file_id
            instance = digest("dicom", origin, str(index))
            return keyed_hash(self._key, "instance", instance) if self._key else instance
        return digest("frame", self.file_id, str(index)) if self._frames > 1 else self.file_id


def _row(
    source: Source,
    settings: IngestSettings,
    pixels: np.ndarray,
    header: DicomHeader | None,
    image_id: str,
    group_id: str,
    frame: int,
) -> Row:
    staged = drop_equal_channels(resize_longest(pixels, settings.stage_side))
    brightness = Brightness(staged)
    return {
        "image_id": image_id,
        "group_id": group_id,
        "source": source.name,
        "organ": source.organ or settings.organ,
        "device": source.device or settings.device,
        "label": source.label,
        "modality": modality(header, staged),
        "frame": frame,
        "image": encode(staged, settings.stage_codec, settings.stage_quality),
        "width": staged.shape[1],
        "height": staged.shape[0],
        "original_width": pixels.shape[1],
        "original_height": pixels.shape[0],
        "colour": staged.ndim == 3,
        "content_hash": content_hash(staged),
        "mean": brightness.mean / 255,
        "contrast": brightness.contrast / 255,
        **quality_columns(staged, brightness, pixels.shape[1], pixels.shape[0], settings.quality),
        **perceptual_columns(brightness),
    }


def digest(*parts: str) -> str:
    """Return 128 bits over the parts in hexadecimal; lengths keep ("ab", "c") from ("a", "bc")."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode()
        hasher.update(len(encoded).to_bytes(8, "little") + encoded)
    return hasher.hexdigest()


def _pattern_group(source: Source, settings: IngestSettings) -> str:
    match = re.search(settings.group_pattern, source.name) if settings.group_pattern else None
    if match is None:
        return ""
    return (match.group(1) if match.re.groups else match.group(0)) or ""


def _dicom_group(header: DicomHeader, key: bytes | None) -> str:
    """Return the patient under the key, or else the study."""
    patient = patient_group(header.patient_id, key)
    if patient or not header.study_instance_uid:
        return patient
    study = digest("study", header.study_instance_uid)
    return study if key is None else keyed_hash(key, "study", study)


def patient_group(patient: str, key: bytes | None) -> str:
    """Return a patient's group under the key; ``""`` without a patient, or without a key.

    A bare hash is no veil: patient ids are few and can be tried one by one.
    """
    if not patient or key is None:
        return ""
    return hmac.new(key, patient.encode(), hashlib.sha256).hexdigest()[:32]


def read_key(settings: IngestSettings) -> bytes | None:
    """Return the user's secret key for identifiers, None where there is none.

    Raises:
        UsageError: The key file is missing or empty.
    """
    if settings.key_file is None:
        return os.environ.get(KEY_VARIABLE, "").encode() or None
    try:
        key = Path(settings.key_file).expanduser().read_bytes().strip()
    except OSError:
        raise UsageError(f"no key file '{settings.key_file}' (key_file) to read.") from None
    if not key:
        raise UsageError(f"the key file '{settings.key_file}' (key_file) is empty.")
    return key


def _failure(name: str, identity: str, error: Exception, what: str = "file") -> Failure:
    if isinstance(error, EchostillError):
        message = f"the {what} {error}"
    else:  # an unforeseen error's text may quote the file's header, which may name a person
        message = f"the {what} could not be read: unforeseen {type(error).__name__}"
    return Failure(name, identity, type(error).__name__, message)
