"""From what people have to pool rows: folders, file lists, manifests and DICOM files.

A source is one file. It gives one row, or one per frame for a DICOM cine; whatever cannot be read
becomes a failure with a reason in words. A file is decoded once.
"""

import csv
import hashlib
import hmac
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from echostill.platform.config import Config
from echostill.platform.dicom import DicomHeader, is_dicom, read_frames
from echostill.platform.errors import UsageError, nearest
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

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
DICOM_SUFFIXES = {".dcm", ".dicom", ""}  # scanners often write no suffix at all
KEY_VARIABLE = "ECHOSTILL_KEY"
COLUMNS = ("group", "organ", "device", "label")


class IngestSettings(Config):
    """What to read and how."""

    source: str | tuple[str, ...] = Field(
        (), description="Folders, image files, .txt file lists, .csv or .parquet manifests."
    )
    exclude: tuple[str, ...] = Field(
        (), description="Manifests (benchmarks) whose files are left out, by content."
    )
    group_pattern: str | None = Field(
        None, description="Regular expression on a file's name; its first group is the group."
    )
    organ: str = Field("", description="Organ of all files that do not name one.")
    device: str = Field("", description="Device of all files that do not name one.")
    frame_stride: int = Field(1, ge=1, description="Take every n-th frame of a cine.")
    stage_side: int = Field(256, ge=16, description="Longest side of the staged images, pixels.")
    max_pixels: int = Field(MAX_PIXELS, ge=1, description="Refuse larger images.")
    key_file: str | None = Field(
        None, description=f"File with the key that hides patient ids; default {KEY_VARIABLE}."
    )

    @field_validator("group_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"is no regular expression: {error}") from None
            if groups < 1:
                raise ValueError("needs parentheses around the part that names the group")
        return pattern


@dataclass(frozen=True)
class Source:
    """A file to read. ``name`` is relative to its root: ids and tables hold no absolute path."""

    file: str
    name: str
    group: str = ""
    organ: str = ""
    device: str = ""
    label: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Failure:
    """A file or frame that could not be read, and why."""

    source: str
    id: str
    error_class: str
    message: str

    def as_row(self, stage: str) -> dict[str, str]:
        """Return the quarantine's row."""
        return {
            "stage": stage,
            "id": self.id,
            "source": self.source,
            "error_class": self.error_class,
            "message": self.message,
        }


def list_sources(settings: IngestSettings) -> list[Source]:
    """List every file, each once, in the order of their names.

    Raises:
        UsageError: A source is missing, is of an unknown kind, lacks a column, or holds no file.
    """
    given = (settings.source,) if isinstance(settings.source, str) else settings.source
    if not given:
        raise UsageError("nothing to ingest: set source to a folder, a file list or a manifest.")
    found: dict[str, Source] = {}
    for entry in given:
        for source in _expand(entry):
            # The same file named twice is one file; the first naming counts.
            found.setdefault(os.path.normpath(source.file), source)
    if not found:
        raise UsageError(
            f"no image or DICOM file in {', '.join(given)}. Known suffixes: "
            f"{', '.join(sorted(IMAGE_SUFFIXES | DICOM_SUFFIXES - {''}))}."
        )
    excluded = _excluded_contents(settings.exclude)
    listed = sorted(found.values(), key=lambda source: (source.name, source.file))
    if excluded:
        listed = [source for source in listed if _digest_of(source) not in excluded]
    return listed


def read_source(source: Source, settings: IngestSettings) -> list[dict[str, Any] | Failure]:
    """Read a file into pool rows; what cannot be read is returned as failures, never raised.

    Returns:
        At least one row or failure; for a cine one for each frame taken.
    """
    try:
        data = _read(source.file)
        if is_dicom(data) or PurePosixPath(source.name).suffix.lower() in DICOM_SUFFIXES:
            return list(_read_dicom(source, data, settings))
        pixels = decode_image(data, settings.max_pixels)
        image_id = _identify("file", source.name, hashlib.sha256(data).hexdigest())
        return [_row(source, image_id, _group(source, settings, image_id), 0, pixels, settings)]
    except DecodeError as error:
        return [Failure(source.name, source.name, type(error).__name__, f"the file {error}")]
    except OSError as error:
        return [
            Failure(
                source.name,
                source.name,
                type(error).__name__,
                f"the file cannot be opened: {error.strerror or type(error).__name__}",
            )
        ]
    except Exception as error:  # one bad file costs one row, whatever is wrong with it
        # The text of an unforeseen error may quote header values, which may name a person.
        return [Failure(source.name, source.name, type(error).__name__, "the file cannot be read")]


def _expand(entry: str) -> Iterator[Source]:
    if "://" in entry:
        raise UsageError(f"source '{entry}': only local folders and files are read so far.")
    path = Path(entry)
    if path.is_dir():
        yield from _walk(path)
    elif not path.exists():
        siblings = os.listdir(path.parent) if path.parent.is_dir() else []
        raise UsageError(f"no source '{entry}'.{nearest(path.name, siblings)}")
    elif path.suffix.lower() == ".txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = ({"file": line.strip()} for line in lines if line.strip())
        yield from _resolve(path, rows)
    elif path.suffix.lower() in (".csv", ".parquet"):
        yield from _resolve(path, _manifest_rows(path))
    elif path.suffix.lower() in IMAGE_SUFFIXES | DICOM_SUFFIXES:
        yield Source(str(path.resolve()), path.name)
    else:
        raise UsageError(
            f"source '{entry}' is neither a folder, an image, a DICOM file, nor a list "
            "(.txt, .csv, .parquet)."
        )


def _walk(root: Path) -> Iterator[Source]:
    """Walk a folder in order; hidden entries and links out of the root are passed over."""
    real_root = root.resolve()
    for folder, folders, files in os.walk(real_root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            suffix = path.suffix.lower()
            if name.startswith(".") or suffix not in IMAGE_SUFFIXES | DICOM_SUFFIXES:
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(real_root):
                continue
            if suffix == "" and not _has_dicom_magic(path):
                continue
            yield Source(str(path), path.relative_to(real_root).as_posix())


def _has_dicom_magic(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(132))
    except OSError:
        return False


def _manifest_rows(path: Path) -> Iterator[dict[str, str]]:
    if path.suffix.lower() == ".parquet":
        try:
            table = pq.read_table(path)
        except Exception as error:
            raise UsageError(f"'{path}' is not readable as Parquet: {error}") from None
        columns, rows = table.column_names, iter(table.to_pylist())
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise UsageError(f"'{path}' is not UTF-8 text.") from None
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        columns, rows = list(reader.fieldnames or []), iter(reader)
    name = next((known for known in ("file", "path") if known in columns), None)
    if name is None:
        raise UsageError(
            f"manifest '{path}' has no column 'file'.{nearest('file', columns)} "
            f"It has: {', '.join(columns) or 'no columns'}."
        )
    for number, row in enumerate(rows, start=1):
        file = str(row[name] or "").strip()
        if not file:
            raise UsageError(f"manifest '{path}' row {number} has no '{name}'.")
        known = {column: str(row.get(column) or "").strip() for column in COLUMNS}
        yield {"file": file, **known}


def _resolve(manifest: Path, rows: Iterable[dict[str, str]]) -> Iterator[Source]:
    root = manifest.resolve().parent
    for row in rows:
        file = Path(row.pop("file"))
        whole = file if file.is_absolute() else root / file
        inside = os.path.normpath(whole)
        try:
            name = Path(inside).relative_to(root).as_posix()
        except ValueError:  # outside of the manifest's folder: the last parts must do as a name
            name = "/".join(Path(inside).parts[-3:])
        yield Source(inside, name, **row)


def _excluded_contents(manifests: tuple[str, ...]) -> set[str]:
    digests = set()
    for manifest in manifests:
        for source in _expand(manifest):
            digests.add(_digest_of(source))
    return digests - {""}


def _digest_of(source: Source) -> str:
    try:
        return hashlib.sha256(_read(source.file)).hexdigest()
    except OSError:
        return ""  # reading it again will put it into quarantine


def _read(file: str) -> bytes:
    folder, _, name = file.rpartition("/")
    return Storage(folder or "/").read(name) if "://" in file else Path(file).read_bytes()


def _read_dicom(
    source: Source, data: bytes, settings: IngestSettings
) -> Iterator[dict[str, Any] | Failure]:
    header, frames = read_frames(data, stride=settings.frame_stride, max_pixels=settings.max_pixels)
    origin = header.sop_instance_uid or hashlib.sha256(data).hexdigest()
    for frame in frames:
        image_id = _identify("dicom", origin, str(frame.index))
        name = f"{source.name}#{frame.index}"
        if frame.pixels is None:
            yield Failure(name, image_id, type(frame.error).__name__, f"the frame {frame.error}")
            continue
        group = source.group or _pattern_group(source, settings)
        group = group or _dicom_group(header, origin, settings)
        row = _row(source, image_id, group, frame.index, frame.pixels, settings)
        row["source"] = name
        row["organ"] = row["organ"] or header.organ
        row["device"] = row["device"] or header.device
        yield row


def _identify(*parts: str) -> str:
    """Return 32 hexadecimal digits (128 bits) from content and origin."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()


def _pattern_group(source: Source, settings: IngestSettings) -> str:
    if settings.group_pattern is None:
        return ""
    match = re.search(settings.group_pattern, source.name)
    return match.group(1) or "" if match else ""


def _group(source: Source, settings: IngestSettings, image_id: str) -> str:
    """The group a manifest or the pattern names; else the image is a group of its own."""
    return source.group or _pattern_group(source, settings) or image_id


def _dicom_group(header: DicomHeader, origin: str, settings: IngestSettings) -> str:
    """The patient under a keyed hash where there is a key, else the study, else the file itself."""
    key = os.environ.get(KEY_VARIABLE, "").encode()
    if settings.key_file is not None:
        key = Path(settings.key_file).read_bytes().strip()
    if key and header.patient_id:
        return hmac.new(key, header.patient_id.encode(), hashlib.sha256).hexdigest()[:32]
    return _identify("study", header.study_instance_uid or origin)


def _row(
    source: Source,
    image_id: str,
    group: str,
    frame: int,
    pixels: np.ndarray,
    settings: IngestSettings,
) -> dict[str, Any]:
    """Stage the pixels and describe them: a row of the pool."""
    staged = resize_longest(pixels, settings.stage_side)
    if staged.ndim == 3 and bool((staged == staged[..., :1]).all()):
        staged = np.ascontiguousarray(staged[..., 0])  # grey that was stored as RGB
    brightness = luminance(staged)
    return {
        "image_id": image_id,
        "group_id": group,
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
        "mean": float(brightness.mean()),
        "contrast": float(brightness.std()),
    }
