"""What ingest is asked to read and how, and each file with what the user says about it."""

import os
import re
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.ingestion.quality import QualitySettings
from echostill.platform.config import Config
from echostill.platform.errors import UsageError
from echostill.platform.imaging.frames import FrameSampling, Limits
from echostill.platform.imaging.images import MAX_PIXELS

KEY_VARIABLE = "ECHOSTILL_KEY"


class IngestSettings(Config):
    """What is read, and how files become rows."""

    source: str | tuple[str, ...] = Field(
        (),
        description="Folder, list (.txt), manifest (.csv, .parquet, .jsonl), archive (.tar, .zip) "
        "or file; one or several.",
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


@dataclass(frozen=True, slots=True)
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
    study: str = field(default="", repr=False)  # the group, where nobody names a patient
    viewer: str = ""  # why it may be a picture of a viewer or web page, see ``Viewers.claim``

    def values(self) -> dict[str, Any]:
        """Return the attributes as plain values."""
        return dict(zip(_ATTRIBUTES, _values(self), strict=True))


_ATTRIBUTES = tuple(each.name for each in fields(Source))
_values = attrgetter(*_ATTRIBUTES)  # many times as quick as `asdict`, for millions of files


def read_key(settings: IngestSettings) -> bytes | None:
    """Return the user's secret key for identifiers, None where there is none.

    Raises:
        UsageError: The key file is missing or empty.
    """
    return read_key_file(settings.key_file)


def read_key_file(path: str | None) -> bytes | None:
    """Return the key in a file, without a file that of the environment, None where there is none.

    Raises:
        UsageError: The key file is missing or empty.
    """
    if path is None:
        return os.environ.get(KEY_VARIABLE, "").encode() or None
    try:
        key = Path(path).expanduser().read_bytes().strip()
    except OSError:
        raise UsageError(f"no key file '{path}' (key_file) to read.") from None
    if not key:
        raise UsageError(f"the key file '{path}' (key_file) is empty.")
    return key
