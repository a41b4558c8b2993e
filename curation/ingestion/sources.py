"""From one source file to pool rows: frames decoded, de-identified, staged.

:func:`read_source` reads one of the files that :mod:`echostill.curation.ingestion.listing` lists.
Whatever is wrong with a file becomes a :class:`Failure` of that file, or of one frame, and stops
nothing else.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from echostill.curation.deidentification.brightness import Brightness
from echostill.curation.deidentification.frames import Origin, deidentify
from echostill.curation.deidentification.review import NEEDS_REVIEW, ReviewGate
from echostill.curation.deidentification.verdict import Context
from echostill.curation.ingestion.archives import NESTED, Member, Passed, read_archive
from echostill.curation.ingestion.blanks import BLANK, why_blank
from echostill.curation.ingestion.findings import Findings
from echostill.curation.ingestion.identity import Identity, belonging, digest
from echostill.curation.ingestion.manifests.paths import portable_name
from echostill.curation.ingestion.patients.spelling import same_device, same_group, same_organ
from echostill.curation.ingestion.perceptual import perceptual_columns
from echostill.curation.ingestion.quality import quality_columns
from echostill.curation.ingestion.settings import IngestSettings, Source, read_key
from echostill.platform.errors import EchostillError
from echostill.platform.imaging.containers import (
    ARCHIVE,
    ARCHIVE_SUFFIXES,
    PACKED,
    container_of,
    open_clip,
)
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Frame
from echostill.platform.imaging.header import DicomHeader
from echostill.platform.imaging.images import (
    DecodeError,
    NoImageError,
    content_hash,
    decode_staged,
    drop_equal_channels,
    encode,
    resize_longest,
)
from echostill.platform.imaging.modality import modality
from echostill.platform.imaging.packed import unpacked
from echostill.platform.imaging.viewers import refuse_viewer_picture
from echostill.platform.tables.schemas import REDACTED


@dataclass(frozen=True)
class Failure:
    """A file or frame that gave no row, with the reason in words."""

    source: str
    id: str
    error_class: str
    message: str
    context: Context | None = None  # of a frame that was held back

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


@dataclass(frozen=True)
class CleanFrame:
    """A frame that may go on: de-identified, and by the names that the pool has for it."""

    source: Source
    header: DicomHeader | None
    pixels: np.ndarray  # uint8 (H, W) or (H, W, 3), of the original size
    staged: np.ndarray  # the same as the pool keeps them, before they are encoded
    image_id: str
    group_id: str
    number: int


MakeRow = Callable[[CleanFrame, IngestSettings], Row]


def read_source(
    source: Source,
    settings: IngestSettings,
    key: bytes | None = None,
    gate: ReviewGate | None = None,
    findings: Findings | None = None,
    make_row: MakeRow | None = None,
) -> list[Row | Failure]:
    """Read one source: its pool rows, and a failure for each frame (or the file) without one.

    Args:
        source: What to read.
        settings: How.
        key: For identifiers; default the user's. Without one DICOM identifiers are plain hashes and
            patients make no groups, which is for readers that store none of it.
        gate: Knows the frames that have been approved, and keeps pictures for review.
        findings: Is told what is noticed beside the entries.
        make_row: Makes an entry of a frame's pixels; default a row of the pool.

    Returns:
        The entries in the order of the frames; none only where an archive holds nothing but what is
        left out.

    Raises:
        UsageError: The key file is missing or empty: that concerns every file.
    """
    return list(stream_source(source, settings, key, gate, findings, make_row))


def stream_source(
    source: Source,
    settings: IngestSettings,
    key: bytes | None = None,
    gate: ReviewGate | None = None,
    findings: Findings | None = None,
    make_row: MakeRow | None = None,
) -> Iterator[Row | Failure]:
    """Do as :func:`read_source` does, one entry at a time."""
    key = key or read_key(settings)
    reading = _Reading(
        settings,
        key,
        gate or ReviewGate(),
        settings.hides_names,
        findings or Findings(),
        make_row or _row,
    )
    if source.problem:
        yield Failure(source.name, source.name, "ListingError", source.problem)
        return
    file = SourceFile(source.name, source.file)
    try:
        if not source.name.lower().endswith(ARCHIVE_SUFFIXES):
            file = file.loaded()
        if file.data is not None or "://" not in file.location:  # it costs no second transfer
            reading.findings.content = file.sha256()
        yield from _content_rows(source, file, reading)
    except Exception as error:
        yield reading.failure(source.name, error)


@dataclass(frozen=True)
class _Reading:
    settings: IngestSettings
    key: bytes | None
    gate: ReviewGate
    hides_names: bool
    findings: Findings
    make_row: MakeRow
    depth: int = 0  # how many archives around
    within: str = ""  # path inside the outermost of them

    def failure(self, name: str, error: Exception) -> Failure:
        """Return what becomes of a file that cannot be read."""
        if isinstance(error, NoImageError):
            self.findings.company(digest("file", name), error)
        return _failure(name, name, error)


def _content_rows(source: Source, file: SourceFile, reading: _Reading) -> Iterator[Row | Failure]:
    """Read what a file is by its content: one picture or cine, an archive, or one of them packed.

    The name of an unpacked file stays that of the file.
    """
    head = file.head()
    kind = container_of(head, file.name) if head else ""
    if kind == PACKED.name:
        inside = unpacked(file, reading.settings.limits)
        if container_of(inside.head(), inside.name) == ARCHIVE.name:
            yield from _archive_rows(source, inside, reading)
        else:
            yield from _file_rows(source, inside, reading)
    elif kind == ARCHIVE.name:
        yield from _archive_rows(source, file, reading)
    else:
        yield from _file_rows(source, file, reading)


def _archive_rows(source: Source, file: SourceFile, reading: _Reading) -> Iterator[Row | Failure]:
    if reading.depth >= NESTED:
        raise DecodeError(f"is an archive inside {NESTED} others, which is not read")
    passed = Passed()
    found = False
    try:
        for member in read_archive(file, reading.settings.limits, passed):
            found = True
            path = reading.within + member.name
            if path in source.skip:
                continue
            named = replace(source, file="", name=member_name(source.name, member.name))
            inner = replace(reading, depth=reading.depth + 1, within=f"{path}/")
            try:
                yield from _member_rows(named, member, inner)
            except Exception as error:
                yield reading.failure(named.name, error)
    finally:
        reading.findings.members(digest("file", source.name), passed.members)
        reading.findings.keys(passed.keys)
    if not found:
        raise DecodeError("is an archive without images")


def member_name(archive: str, member: str) -> str:
    """Return what a member of an archive is called as a source."""
    return f"{archive}/{portable_name(member)}"


def _member_rows(source: Source, member: Member, reading: _Reading) -> Iterator[Row | Failure]:
    if member.data is None:
        raise DecodeError(member.problem)
    values = member.values
    # Whose the archive is, its members are, unless their own file says whose they are.
    if any(values.get(name) for name in ("group", "patient", "study")):
        source = replace(
            source,
            group=same_group(values.get("group", "")),
            patient=values.get("patient", ""),
            study=values.get("study", ""),
        )
    source = replace(
        source,
        id=values.get("id", ""),
        organ=same_organ(values.get("organ", "")) or source.organ,
        device=same_device(values.get("device", "")) or source.device,
        label=values.get("label") or source.label,
        viewer=member.viewer,
    )
    yield from _content_rows(source, SourceFile(source.name, data=member.data), reading)


def _file_rows(source: Source, file: SourceFile, reading: _Reading) -> Iterator[Row | Failure]:
    settings, key, gate = reading.settings, reading.key, reading.gate
    clip = open_clip(file, settings.limits)
    header = clip.header
    identity = Identity(source, file, header, clip.frames, key, reading.hides_names)
    owner = belonging(source, header, settings, key)
    group = owner.group or identity.file_id
    reading.findings.group(group, owner.study, owner.nobody)
    origin = Origin(model=source.device or settings.device)
    if header is not None:
        origin = Origin(header.manufacturer, header.device, header.regions, header.identifying)
        # What the user said comes first, then what the file says, then the configured default.
        source = replace(
            source,
            organ=source.organ or settings.organ or same_organ(header.organ),
            device=source.device or settings.device or same_device(header.device),
        )
    # A cine's sector is looked for on its first frames: these are held meanwhile, not the clip.
    shown = _without_viewer_pictures(settings.frames.read(clip), source.viewer)
    frames, ahead = itertools.tee(shown)
    pixels = (frame.pixels for frame in ahead)
    all_cleaned = deidentify(pixels, settings.deidentify, origin)
    for frame, cleaned in zip(frames, all_cleaned, strict=True):
        image_id = identity.of_frame(frame.index)
        name = f"{source.name}#{frame.index}" if clip.frames > 1 else source.name
        if frame.pixels is None:
            what = "frame" if clip.frames > 1 else "file"
            if isinstance(frame.error, NoImageError):
                reading.findings.company(image_id, frame.error)
            yield _failure(name, image_id, frame.error or DecodeError("is missing"), what)
            continue
        gate.look(image_id, frame.pixels, cleaned)
        # Cleaned pixels are staged, or the frame is held back; never the pixels as they were.
        if cleaned.pixels is None or not gate.passes(image_id, cleaned):
            organ, device = source.organ or settings.organ, source.device or settings.device
            context = Context(organ, device, group)
            yield Failure(name, image_id, NEEDS_REVIEW, cleaned.verdict.describe(), context)
            continue
        if reason := why_blank(frame.pixels, cleaned.pixels):
            yield Failure(name, image_id, BLANK, reason)
            continue
        clean = CleanFrame(
            replace(source, name=name),
            header,
            cleaned.pixels,
            drop_equal_channels(resize_longest(cleaned.pixels, settings.stage_side)),
            image_id,
            group,
            frame.index,
        )
        row = reading.make_row(clean, settings)
        if settings.deidentify.redacts:
            row[REDACTED.name] = cleaned.verdict.redacted
        yield row


def _without_viewer_pictures(frames: Iterator[Frame], claim: str) -> Iterator[Frame]:
    """Yield frames, and errors for those that are a viewer's, where the file may be one's."""
    for frame in frames:
        if claim and frame.pixels is not None:
            try:
                refuse_viewer_picture(frame.pixels, claim)
            except NoImageError as error:
                frame = Frame(frame.index, None, error)
        yield frame


def pixels_row(frame: CleanFrame, settings: IngestSettings) -> Row:
    """Make an entry for readers that need a frame's pixels and its name, and measure nothing.

    ``pixels`` are those of a row of the pool, uint8 (H, W) or (H, W, 3), as they are decoded again.
    """
    pixels = frame.staged
    if settings.stage_codec != "png":
        pixels = decode_staged(encode(pixels, settings.stage_codec, settings.stage_quality))
    return {
        "image_id": frame.image_id,
        "source": frame.source.name,
        "frame": frame.number,
        "pixels": pixels,
    }


def _row(frame: CleanFrame, settings: IngestSettings) -> Row:
    source, pixels, staged = frame.source, frame.pixels, frame.staged
    brightness = Brightness(staged)
    return {
        "image_id": frame.image_id,
        "group_id": frame.group_id,
        "source": source.name,
        "organ": source.organ or same_organ(settings.organ),
        "device": source.device or settings.device,
        "label": source.label,
        "modality": modality(frame.header, staged),
        "frame": frame.number,
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


def _failure(name: str, identity: str, error: Exception, what: str = "file") -> Failure:
    if isinstance(error, EchostillError):
        message = f"the {what} {error}"
    else:  # an unforeseen error's text may quote the file's header, which may name a person
        message = f"the {what} could not be read: unforeseen {type(error).__name__}"
    return Failure(name, identity, type(error).__name__, message)
