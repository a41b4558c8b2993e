"""From what a user has (folders, lists, manifests, DICOM) to pool rows, one source file at a time.

:func:`list_sources` says what there is to read and :func:`read_source` reads one of it. Whatever is
wrong with a file becomes a :class:`Failure` of that file and stops nothing else.
"""

import hashlib
import hmac
import itertools
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from echostill.curation.deidentification import (
    Cleaned,
    DeidentifySettings,
    Scanner,
    deidentify,
)
from echostill.curation.identifiers import keyed_hash
from echostill.curation.manifests import (
    MANIFEST_SUFFIXES,
    OPTIONAL_COLUMNS,
    absolute_path,
    common_folder,
    is_inside,
    manifest_rows,
    portable_name,
)
from echostill.curation.review import NEEDS_REVIEW, Desk
from echostill.platform.config import Config
from echostill.platform.dicom import DicomHeader, is_dicom, read_frames
from echostill.platform.errors import EchostillError, UsageError, nearest
from echostill.platform.images import (
    MAX_PIXELS,
    DecodeError,
    content_hash,
    decode_image,
    encode_png,
    luminance,
    resize_longest,
)
from echostill.platform.storage import Storage

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
DICOM_SUFFIXES = (".dcm", ".dicom")
SUFFIXES = (*IMAGE_SUFFIXES, *DICOM_SUFFIXES)
KEY_VARIABLE = "ECHOSTILL_KEY"


class IngestSettings(Config):
    """What is read, and how files become rows."""

    source: str | tuple[str, ...] = Field(
        (),
        description="Image folder, list (.txt), manifest (.csv, .parquet) or file; one or several.",
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
    frame_stride: int = Field(1, description="Read every n-th frame of a cine.", ge=1)
    stage_side: int = Field(256, description="Longest side of a staged image, in pixels.", ge=16)
    max_pixels: int = Field(MAX_PIXELS, description="Refuse larger pictures.", ge=1)
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


@dataclass(frozen=True)
class Source:
    """One file to read: where it is, and what the user said about it."""

    file: str  # absolute path or URI
    name: str  # path relative to its root: ids depend on it, never on where the root is
    group: str = ""
    organ: str = ""
    device: str = ""
    label: str = ""
    problem: str = ""  # why it must not be read; it then becomes a failure


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


def list_sources(settings: IngestSettings) -> list[Source]:
    """List every file to read, in the order given; folders are listed by name.

    A file listed twice appears twice, the second time with its ``problem``: no row goes missing
    unsaid.

    Raises:
        UsageError: A source does not exist or holds nothing to read, a manifest lacks its file
            column, ``group_pattern`` fits no name, or the key file is missing.
    """
    read_key(settings)  # refuse a missing key file before the work, not in it
    given = (settings.source,) if isinstance(settings.source, str) else settings.source
    sources = [source for location in given for source in _list_one(location, settings)]
    if not sources:
        raise UsageError("nothing to ingest: set 'source' to a folder, list or manifest.")
    _check_pattern(settings, sources)
    first_name: dict[str, str] = {}
    listed = []
    for source in sources:
        if source.file and source.file in first_name:
            said = f"listed more than once (first as '{first_name[source.file]}'); it is read once"
            source = replace(source, problem=said)
        elif source.file:
            first_name[source.file] = source.name
        listed.append(source)
    excluded = _contents(settings)
    return [source for source in listed if not excluded or _content(source) not in excluded]


def read_source(
    source: Source, settings: IngestSettings, key: bytes | None = None, desk: Desk | None = None
) -> list[Row | Failure]:
    """Read one source: its pool rows, and a failure for each frame (or the file) without one.

    Args:
        source: What to read.
        settings: How.
        key: For identifiers; default the user's, and without one they are plain hashes.
        desk: Knows the frames that have been approved, and keeps pictures for review.

    Returns:
        At least one entry, in the order of the frames.

    Raises:
        UsageError: The key file is missing or empty: that concerns every file.
    """
    key, desk = key or read_key(settings), desk or Desk()
    if source.problem:
        return [Failure(source.name, source.name, "ListingError", source.problem)]
    try:
        data = _read_bytes(source.file)
        if is_dicom(data) or source.file.lower().endswith(DICOM_SUFFIXES):
            return list(_dicom_rows(source, data, settings, key, desk))
        return [_image_row(source, data, settings, desk)]
    except Exception as error:
        return [_failure(source.name, source.name, error)]


def _list_one(location: str, settings: IngestSettings) -> list[Source]:
    suffix = posixpath.splitext(location.lower())[1]
    if "://" in location:
        storage = Storage(posixpath.dirname(location))
        found = storage.exists(posixpath.basename(location))
    else:
        found = os.path.exists(location)
        location = os.path.abspath(os.path.expanduser(location)) if found else location
    if not found:
        folder = Path(location).parent
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise UsageError(f"no source '{location}'.{nearest(Path(location).name, names)}")
    if suffix in MANIFEST_SUFFIXES and not os.path.isdir(location):
        return _list_table(location, settings)
    if suffix in SUFFIXES or os.path.isfile(location):
        return [Source(location, portable_name(posixpath.basename(Path(location).as_posix())))]
    listed = _remote_folder(location) if "://" in location else _local_folder(location, settings)
    if not listed:
        deeper = "" if settings.recursive else " Its folders are not read: recursive is false."
        raise UsageError(
            f"'{location}' holds no images ({', '.join(SUFFIXES)} or DICOM files).{deeper}"
        )
    return listed


def _local_folder(root: str, settings: IngestSettings) -> list[Source]:
    inside = os.path.realpath(root) + os.sep
    sources = []
    for folder, folders, files in os.walk(root):
        shown = [name for name in folders if not name.startswith(".")]
        folders[:] = sorted(shown) if settings.recursive else []
        for file in files:
            path = os.path.join(folder, file)
            outside = os.path.islink(path) and not os.path.realpath(path).startswith(inside)
            if not file.startswith(".") and not outside and _recognised(path):
                name = Path(path).relative_to(root).as_posix()
                sources.append(Source(path, portable_name(name)))
    return sorted(sources, key=lambda source: source.name)


def _remote_folder(root: str) -> list[Source]:
    return [
        Source(f"{root.rstrip('/')}/{name}", portable_name(name))
        for name in Storage(root).list(recursive=True)
        if name.lower().endswith(SUFFIXES) and not any(p.startswith(".") for p in name.split("/"))
    ]


def _recognised(path: str) -> bool:
    if path.lower().endswith(SUFFIXES):
        return True
    try:
        with open(path, "rb") as file:
            return is_dicom(file.read(132))
    except OSError:
        return False


def _list_table(location: str, settings: IngestSettings) -> list[Source]:
    """List a text file, CSV or Parquet manifest; absolute paths keep what tells them apart."""
    rows = list(manifest_rows(location, _read_bytes(location)))
    root = settings.root or posixpath.dirname(location)
    if "://" not in root:
        root = os.path.abspath(os.path.expanduser(root))
    files = [absolute_path(row["file"], root) if row["file"] else "" for row in rows]
    base = common_folder([file for file in files if file and not is_inside(file, root)])
    sources = []
    for number, (row, file) in enumerate(zip(rows, files, strict=True), start=1):
        told = {column: row.get(column, "") for column in OPTIONAL_COLUMNS}
        if not file:
            said = f"row {number} of '{posixpath.basename(location)}' names no file"
            sources.append(Source("", f"row {number}", **told, problem=said))
            continue
        name = os.path.relpath(file, root) if is_inside(file, root) else file[len(base) :]
        sources.append(Source(file, portable_name(Path(name).as_posix().lstrip("/")), **told))
    if not sources:
        raise UsageError(f"'{location}' lists no files.")
    return sources


def _contents(settings: IngestSettings) -> set[str]:
    """Return the digests of the files to leave out: under another name they are the same image."""
    plain = settings.model_copy(update={"root": None})
    return {
        _content(source) for manifest in settings.exclude for source in _list_one(manifest, plain)
    } - {""}


def _content(source: Source) -> str:
    try:
        return hashlib.sha256(_read_bytes(source.file)).hexdigest() if source.file else ""
    except DecodeError:
        return ""  # reading it again says why, in the quarantine


def _check_pattern(settings: IngestSettings, sources: list[Source]) -> None:
    pattern = settings.group_pattern
    if pattern is not None and not any(re.search(pattern, source.name) for source in sources):
        hidden = settings.deidentify.sources == "hashed" or read_key(settings) is not None
        example = "" if hidden else f"; the first is '{sources[0].name}'"
        raise UsageError(f"group_pattern '{pattern}' fits no name{example}.")


def beginning(file: str, size: int = 2**20) -> bytes:
    """Return a file's first bytes; none of one that cannot be read."""
    try:
        if "://" not in file:
            with open(file, "rb") as stream:
                return stream.read(size)
        storage = Storage(posixpath.dirname(file))
        name = storage.arrow_path(posixpath.basename(file))
        with storage.filesystem.open_input_stream(name) as stream:
            return bytes(stream.read(size))
    except (OSError, UsageError):
        return b""


def _read_bytes(file: str) -> bytes:
    try:
        if "://" in file:
            return Storage(posixpath.dirname(file)).read(posixpath.basename(file))
        with open(file, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        raise DecodeError("does not exist") from None
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror or type(error).__name__}") from None


def _image_row(source: Source, data: bytes, settings: IngestSettings, desk: Desk) -> Row | Failure:
    pixels = decode_image(data, settings.max_pixels)
    image_id = _file_id(source, data)
    group = source.group or _pattern_group(source, settings) or image_id
    scanner = Scanner(model=source.device or settings.device)
    (cleaned,) = deidentify([pixels], (), settings.deidentify, scanner)
    return _pass_or_hold(source, settings, pixels, cleaned, image_id, group, 0, desk)


def _dicom_rows(
    source: Source, data: bytes, settings: IngestSettings, key: bytes | None, desk: Desk
) -> Iterator[Row | Failure]:
    header, frames = read_frames(data, stride=settings.frame_stride, max_pixels=settings.max_pixels)
    group = source.group or _pattern_group(source, settings) or _dicom_group(header, key)
    group = group or _file_id(source, data)
    # What the user said comes first, then what the file says, then the configured default.
    source = replace(
        source,
        organ=source.organ or settings.organ or header.organ,
        device=source.device or settings.device or header.device,
    )
    origin = header.sop_instance_uid or _file_id(source, data)
    # The frames ahead are held while a cine's sector is looked for: a few, not the clip.
    ahead, frames = itertools.tee(frames)
    scanner = Scanner(header.manufacturer, header.device)
    pixels = (frame.pixels for frame in ahead)
    cleaned_frames = deidentify(pixels, header.regions, settings.deidentify, scanner)
    for frame, cleaned in zip(frames, cleaned_frames, strict=True):
        image_id = _dicom_id(origin, frame.index, key)
        name = f"{source.name}#{frame.index}" if header.frames > 1 else source.name
        if frame.pixels is None:
            yield _failure(name, image_id, frame.error or DecodeError("is missing"), "frame")
            continue
        named = replace(source, name=name)
        yield _pass_or_hold(
            named, settings, frame.pixels, cleaned, image_id, group, frame.index, desk
        )


def _pass_or_hold(
    source: Source,
    settings: IngestSettings,
    pixels: np.ndarray,
    cleaned: Cleaned,
    image_id: str,
    group: str,
    frame: int,
    desk: Desk,
) -> Row | Failure:
    """Stage a frame's cleaned pixels, or hold it back for review; never the pixels as they were."""
    desk.look(image_id, pixels, cleaned)
    if cleaned.pixels is not None and desk.passes(image_id, cleaned):
        return _row(source, settings, cleaned.pixels, image_id, group, frame)
    return Failure(source.name, image_id, NEEDS_REVIEW, cleaned.verdict.describe())


def _row(
    source: Source,
    settings: IngestSettings,
    pixels: np.ndarray,
    image_id: str,
    group_id: str,
    frame: int = 0,
) -> Row:
    staged = resize_longest(pixels, settings.stage_side)
    if staged.ndim == 3 and bool((staged == staged[..., :1]).all()):
        staged = np.ascontiguousarray(staged[..., 0])  # grey that was stored as RGB
    brightness = luminance(staged)
    return {
        "image_id": image_id,
        "group_id": group_id,
        "source": source.name,
        "organ": source.organ or settings.organ,
        "device": source.device or settings.device,
        "label": source.label,
        "frame": frame,
        "image": encode_png(staged),
        "width": staged.shape[1],
        "height": staged.shape[0],
        "original_width": pixels.shape[1],
        "original_height": pixels.shape[0],
        "colour": staged.ndim == 3,
        "content_hash": content_hash(staged),
        "mean": float(brightness.mean(dtype=np.float64)),
        "contrast": float(brightness.std(dtype=np.float64)),
    }


def digest(*parts: str) -> str:
    """Return 128 bits over the parts in hexadecimal; lengths keep ("ab", "c") from ("a", "bc")."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode()
        hasher.update(len(encoded).to_bytes(8, "little") + encoded)
    return hasher.hexdigest()


def _file_id(source: Source, data: bytes) -> str:
    return digest("file", source.name, hashlib.sha256(data).hexdigest())


def _dicom_id(instance: str, frame: int, key: bytes | None) -> str:
    """Return a frame's id from its instance's UID, which others may know: under the key."""
    plain = digest("dicom", instance, str(frame))
    return plain if key is None else keyed_hash(key, "instance", plain)


def _pattern_group(source: Source, settings: IngestSettings) -> str:
    match = re.search(settings.group_pattern, source.name) if settings.group_pattern else None
    if match is None:
        return ""
    return (match.group(1) if match.re.groups else match.group(0)) or ""


def _dicom_group(header: DicomHeader, key: bytes | None) -> str:
    """Return the patient under a secret key, or the study: a bare hash of a patient id is no veil.

    Patient ids are few and can be tried one by one, so without a key they are not used at all.
    """
    if key is not None and header.patient_id:
        return hmac.new(key, header.patient_id.encode(), hashlib.sha256).hexdigest()[:32]
    if not header.study_instance_uid:
        return ""
    study = digest("study", header.study_instance_uid)
    return study if key is None else keyed_hash(key, "study", study)


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
