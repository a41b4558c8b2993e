"""Burned-in identifiers out of frames: keep the sector, black outside, then look for text.

It fails closed: a frame passes as clean, or is held back for a person to look at with the reason.
No error, no doubt and no setting but ``pixels: off`` lets a frame through unchanged.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from echostill.curation.deidentification.sector import Box, Motion, Sector, brightest, find_sector
from echostill.curation.deidentification.text_likelihood import Row, text_rows
from echostill.platform.config import Config, execution
from echostill.platform.imaging.header import Region
from echostill.platform.imaging.images import content_hash

_AHEAD_BYTES = 256 * 2**20  # of frames held while a cine's sector is looked for
_BLANK = 8  # grey levels that a frame without a picture spans at most
_TOUCHES = 0.02  # share of a text's box inside the sector from which the text counts


class MaskRule(Config):
    """What to keep of the frames of one scanner, where that is known better than found."""

    manufacturer: str = Field("", description="Manufacturer (0008,0070); empty fits all.")
    model: str = Field("", description="ManufacturerModelName (0008,1090); empty fits all.")
    rows: int = Field(description="Rows of the frame.", ge=1)
    columns: int = Field(description="Columns of the frame.", ge=1)
    keep: tuple[tuple[int, int, int, int], ...] = Field(
        description="Rectangles to keep: left, top, right, bottom (the last two exclusive).",
        min_length=1,
    )

    @model_validator(mode="after")
    def _inside(self) -> "MaskRule":
        for left, top, right, bottom in self.keep:
            if not (0 <= left < right <= self.columns and 0 <= top < bottom <= self.rows):
                box = [left, top, right, bottom]
                raise ValueError(
                    f"{box} is no rectangle inside {self.columns} x {self.rows} pixels"
                )
        return self


class DeidentifySettings(Config):
    """How identifiers are taken out of pixels and names."""

    pixels: Literal["sector", "off"] = Field(
        "sector",
        description="Keep the ultrasound sector and hold back frames with text in it; off leaves "
        "pixels as they are.",
    )
    sources: Literal["auto", "hashed", "names"] = Field(
        "auto",
        description="File names and groups as given, or as keyed hashes; auto hashes them when "
        "there is a key.",
    )
    min_confidence: float = Field(
        0.5, description="Hold back frames whose sector is less sure.", ge=0, le=1
    )
    max_text: float = Field(
        0.7, description="Hold back frames with likelier text in the sector.", ge=0, le=1
    )
    frames_ahead: int = Field(
        32, description="Frames of a cine looked at before its sector is decided.", ge=1
    )
    masks: tuple[MaskRule, ...] = Field(
        (), description="What to keep of known scanners; the first that fits is used."
    )
    review_pixels: bool = execution(
        False, "Write the frames held back as pictures. They are identifiable."
    )
    contact_sheet: int = execution(
        0, "Frames to show before and after, in pictures. They are identifiable.", ge=0
    )

    @field_validator("pixels", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare off as false


@dataclass(frozen=True)
class Scanner:
    """What made a frame, as far as a file says."""

    manufacturer: str = ""
    model: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether a frame may pass, and what that stands on.

    Attributes:
        reason: Why a person must look: ``text``, ``sector`` or ``failed: <error class>``; empty
            for a clean frame.
        score: Largest text score in the sector, 0..1.
        boxes: Boxes of likely text in the sector, in the frame's pixels.
        confidence: Of the sector, 0..1.
        method: How the sector was found.
        cleaned: Content hash of the frame with its outside blackened; an approval holds for these
            pixels alone. Empty where there are none, or for a clean frame.
    """

    reason: str = ""
    score: float = 0.0
    boxes: tuple[Box, ...] = ()
    confidence: float = 0.0
    method: str = ""
    cleaned: str = ""

    @property
    def clean(self) -> bool:
        """Whether the frame may pass."""
        return not self.reason

    def describe(self) -> str:
        """Say it in words that :meth:`parse` reads back."""
        places = " ".join(",".join(str(edge) for edge in box) for box in self.boxes)
        return (
            f"needs review ({self.reason}): text {self.score:.3f} at [{places}], sector by "
            f"{self.method or 'none'} with confidence {self.confidence:.3f}, "
            f"cleaned pixels {self.cleaned or 'none'}"
        )

    @classmethod
    def parse(cls, text: str) -> "Verdict":
        """Read what :meth:`describe` wrote.

        Raises:
            ValueError: The text is something else.
        """
        match = _DESCRIBED.fullmatch(text)
        if match is None:
            raise ValueError("not the description of a verdict")
        reason, score, places, method, confidence, cleaned = match.groups()
        boxes = []
        for place in places.split():
            left, top, right, bottom = (int(edge) for edge in place.split(","))
            boxes.append((left, top, right, bottom))
        return cls(
            reason,
            float(score),
            tuple(boxes),
            float(confidence),
            "" if method == "none" else method,
            "" if cleaned == "none" else cleaned,
        )


_DESCRIBED = re.compile(
    r"needs review \((.+)\): text ([\d.]+) at \[(.*)\], sector by (\S+) with confidence ([\d.]+), "
    r"cleaned pixels (\w+)"
)


@dataclass(frozen=True)
class Cleaned:
    """A frame after de-identification.

    ``pixels`` are the frame with its outside blackened; None where that failed, or where there was
    no frame. They may be stored only if the verdict is clean, or approved.
    """

    pixels: np.ndarray | None
    verdict: Verdict


def deidentify(
    frames: Iterable[np.ndarray | None],
    regions: Sequence[Region],
    settings: DeidentifySettings,
    scanner: Scanner | None = None,
) -> Iterator[Cleaned]:
    """De-identify the frames of one file, a still or a cine; one comes out for each that goes in.

    The sector of a cine is decided on its first ``frames_ahead`` frames (fewer where they are
    large), the text in it on every frame. Errors of the iterable itself are its caller's.

    Args:
        frames: uint8 (H, W) or (H, W, 3) each; None where a frame is missing, which stays None.
        regions: The regions that the file declares.
        settings: What to do.
        scanner: What made the frames; mask rules ask for it.
    """
    if settings.pixels == "off":
        yield from (Cleaned(frame, Verdict(method="off")) for frame in frames)
        return
    remaining = iter(frames)
    ahead = _take(remaining, settings.frames_ahead)
    present = [frame for frame in ahead if frame is not None]
    try:
        sector, lettering = _decide(present, regions, settings, scanner or Scanner())
    except Exception as error:  # fail closed, whatever it is
        held = Verdict(_failed(error))
        yield from (Cleaned(None, held) for _ in itertools.chain(ahead, remaining))
        return
    # A still's text has been looked for already; other frames than this one are looked at anew.
    still = present[0] if len(present) == 1 else None
    for frame in itertools.chain(ahead, remaining):
        yield _clean(frame, sector, lettering, frame is still, settings)


def _take(frames: Iterator[np.ndarray | None], count: int) -> list[np.ndarray | None]:
    taken: list[np.ndarray | None] = []
    held = 0
    while len(taken) < count and held < _AHEAD_BYTES:
        try:
            frame = next(frames)
        except StopIteration:
            break
        taken.append(frame)
        held += 0 if frame is None else frame.nbytes
    return taken


def _decide(
    frames: list[np.ndarray],
    regions: Sequence[Region],
    settings: DeidentifySettings,
    scanner: Scanner,
) -> tuple[Sector, list[Row]]:
    """Find the sector, and the text that stands still in a cine (or is in a still)."""
    if not frames:
        return Sector(np.zeros((0, 0), dtype=bool), 0.0, "none"), []
    motion = Motion()
    for frame in frames:
        motion.add(frame)
    # What moves fades out of the darkest picture of a cine, and lettering over it stands out.
    lettering = _likely(frames[0] if len(frames) == 1 else motion.lowest, settings)
    rule = _rule(settings.masks, motion.lowest.shape, scanner)
    if rule is not None:
        mask = np.zeros(motion.lowest.shape, dtype=bool)
        for left, top, right, bottom in rule.keep:
            mask[top:bottom, left:right] = True
        return Sector(mask, 1.0, "rule"), lettering
    found: np.ndarray | Motion = motion if motion.frames > 1 else frames[0]
    return find_sector(found, regions, [row.box for row in lettering]), lettering


def _likely(frame: np.ndarray, settings: DeidentifySettings) -> list[Row]:
    return [row for row in text_rows(frame) if row.score > settings.max_text]


def _rule(rules: Sequence[MaskRule], shape: tuple[int, ...], scanner: Scanner) -> MaskRule | None:
    for rule in rules:
        fits = rule.manufacturer.casefold() in ("", scanner.manufacturer.casefold())
        fits = fits and rule.model.casefold() in ("", scanner.model.casefold())
        if fits and (rule.rows, rule.columns) == shape[:2]:
            return rule
    return None


def _clean(
    frame: np.ndarray | None,
    sector: Sector,
    lettering: list[Row],
    looked_at: bool,
    settings: DeidentifySettings,
) -> Cleaned:
    if frame is None:
        return Cleaned(None, Verdict())
    try:
        if frame.shape[:2] != sector.mask.shape:
            raise ValueError(f"a frame of {frame.shape} under a mask of {sector.mask.shape}")
        value = brightest(frame)
        if int(value.max()) - int(value.min()) <= _BLANK:
            return Cleaned(np.zeros_like(frame), Verdict(method="blank"))
        rows = lettering if looked_at else [*lettering, *_likely(frame, settings)]
        rows = [row for row in rows if _share_inside(row.box, sector.mask) > _TOUCHES]
        pixels = frame if sector.mask.all() else np.where(_like(sector.mask, frame), frame, 0)
        reason = ""
        if sector.confidence < settings.min_confidence:
            reason = "sector"
        if rows:
            reason = "text"
        verdict = Verdict(
            reason,
            max((row.score for row in rows), default=0.0),
            tuple(sorted({row.box for row in rows})),
            sector.confidence,
            sector.method,
            content_hash(pixels) if reason else "",
        )
        return Cleaned(pixels.astype(np.uint8, copy=False), verdict)
    except Exception as error:  # fail closed, whatever it is
        return Cleaned(None, Verdict(_failed(error)))


def _failed(error: Exception) -> str:
    return f"failed: {type(error).__name__}"  # its text may quote the file


def _like(mask: np.ndarray, frame: np.ndarray) -> np.ndarray:
    return mask if frame.ndim == 2 else mask[..., None]


def _share_inside(box: Box, mask: np.ndarray) -> float:
    left, top, right, bottom = box
    inside = mask[top:bottom, left:right]
    return float(inside.mean()) if inside.size else 0.0
