"""Burned-in identifiers out of frames: keep the sector, black outside, then look for text.

It fails closed: a frame passes as clean, or is held back for a person to look at with the reason.
No error, no doubt and no setting but ``pixels: off`` lets a frame through unchanged. Text in the
sector holds a frame back, or is blackened and looked for again.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from echostill.curation.deidentification.brightness import Box, brightest
from echostill.curation.deidentification.redaction import lost_share, redact
from echostill.curation.deidentification.sector import Motion, Sector, find_sector
from echostill.curation.deidentification.settings import DeidentifySettings, MaskRule
from echostill.curation.deidentification.text.finder import Finder, finder
from echostill.curation.deidentification.text.found import Text
from echostill.curation.deidentification.verdict import Cleaned, Verdict
from echostill.platform.imaging.header import Region
from echostill.platform.imaging.images import content_hash

_AHEAD_BYTES = 256 * 2**20  # of frames held while a cine's sector is looked for
_BLANK = 8  # grey levels that a frame without a picture spans at most
_MAYBE = 0.2  # score from which text on an even ground is no tissue
_LOOKS = 3  # at a frame that is redacted, each after blackening what the one before found


@dataclass(frozen=True)
class Origin:
    """What a file says about the frames in it, beside their pixels.

    Attributes:
        manufacturer: Of the scanner; mask rules ask for it.
        model: Of the scanner.
        regions: That the file declares.
        identifying: What of the picture identifies the patient, as the file says: such as
            ``burned-in annotation``; empty where it says no such thing.
    """

    manufacturer: str = ""
    model: str = ""
    regions: Sequence[Region] = ()
    identifying: str = ""


def deidentify(
    frames: Iterable[np.ndarray | None],
    settings: DeidentifySettings,
    origin: Origin | None = None,
) -> Iterator[Cleaned]:
    """De-identify the frames of one file, a still or a cine; one comes out for each that goes in.

    The sector of a cine is decided on its first ``frames_ahead`` frames (fewer where they are
    large), the text in it on every frame. Errors of the iterable itself are its caller's.

    Args:
        frames: uint8 (H, W) or (H, W, 3) each; None where a frame is missing, which stays None.
        settings: What to do.
        origin: What the file says about them.
    """
    if settings.pixels == "off":
        yield from (Cleaned(frame, Verdict(method="off")) for frame in frames)
        return
    remaining = iter(frames)
    ahead = _take(remaining, settings.frames_ahead)
    present = [frame for frame in ahead if frame is not None]
    try:
        cleaner = _cleaner(present, settings, origin or Origin())
    except Exception as error:  # fail closed, whatever it is
        held = Verdict(_failed(error))
        yield from (Cleaned(None, held) for _ in itertools.chain(ahead, remaining))
        return
    # The first one's text has been looked for already.
    for frame in ahead:
        yield cleaner.clean(frame, looked_at=bool(present) and frame is present[0])
    for frame in remaining:
        yield cleaner.clean(frame)


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


@dataclass(frozen=True)
class _Cleaner:
    """Cleans the frames of one file.

    Attributes:
        sector: What is kept of each frame.
        first: Likely text in the first frame.
        standing: Likely text that stands still in a cine.
    """

    settings: DeidentifySettings
    find: Finder
    sector: Sector
    first: list[Text]
    standing: list[Text]
    identifying: str

    def clean(self, frame: np.ndarray | None, looked_at: bool = False) -> Cleaned:
        """Clean one frame; the first one has been looked at."""
        if frame is None:
            return Cleaned(None, Verdict())
        try:
            return self._clean(frame, looked_at)
        except Exception as error:  # fail closed, whatever it is
            return Cleaned(None, Verdict(_failed(error)))

    def _clean(self, frame: np.ndarray, looked_at: bool) -> Cleaned:
        mask = self.sector.mask
        if frame.shape[:2] != mask.shape:
            raise ValueError(f"a frame of {frame.shape} under a mask of {mask.shape}")
        value = brightest(frame)
        if int(value.max()) - int(value.min()) <= _BLANK:
            return Cleaned(np.zeros_like(frame), Verdict(method="blank"))
        pixels = frame if mask.all() else frame * _like(mask, frame)
        pixels = pixels.astype(np.uint8, copy=False)
        texts = [*self.standing, *(self.first if looked_at else self._likely(frame))]
        texts = [text for text in texts if text.lies_in(mask)]
        reason, redacted = "text" if texts else "", 0.0
        if texts and self.settings.text == "redact":
            pixels, texts, reason = self._redact(pixels, texts)
            redacted = lost_share(texts, mask)
        if not reason and self.identifying:
            reason = "declared"
        if not reason and self.sector.confidence < self.settings.min_confidence:
            reason = "sector"
        verdict = Verdict(
            reason,
            max((text.score for text in texts), default=0.0),
            boxes_of(texts),
            self.sector.confidence,
            self.sector.method,
            content_hash(pixels) if reason else "",
            redacted,
        )
        return Cleaned(pixels, verdict)

    def _redact(self, pixels: np.ndarray, texts: list[Text]) -> tuple[np.ndarray, list[Text], str]:
        """Blacken texts until no more is found: the pixels, all the texts, why that fails."""
        mask = self.sector.mask
        for _ in range(_LOOKS):
            redacted = redact(pixels, texts)
            if lost_share(texts, mask) > self.settings.max_redacted:
                return redacted, texts, "redaction"
            left = [text for text in self._likely(redacted) if text.lies_in(mask)]
            if not left:
                return redacted, texts, ""
            texts = [*texts, *left]
        return redact(pixels, texts), texts, "text"

    def _likely(self, frame: np.ndarray) -> list[Text]:
        return _likely(self.find(frame), self.settings)


def _likely(texts: Iterable[Text], settings: DeidentifySettings) -> list[Text]:
    return [text for text in texts if text.score > settings.max_text]


def boxes_of(texts: Sequence[Text]) -> tuple[Box, ...]:
    """Return the boxes of texts, each once, in order."""
    return tuple(sorted({text.box for text in texts}))


def _cleaner(frames: list[np.ndarray], settings: DeidentifySettings, origin: Origin) -> _Cleaner:
    """Find the sector, and the text that stands still in a cine (or is in a still)."""
    find = finder(settings.finder)
    identifying = origin.identifying if settings.declared == "hold" else ""
    if not frames:
        nothing = Sector(np.zeros((0, 0), dtype=bool), 0.0, "none")
        return _Cleaner(settings, find, nothing, [], [], identifying)
    motion = Motion()
    for frame in frames:
        motion.add(frame)
    # What moves fades out of the darkest picture of a cine, and lettering over it stands out.
    found = find(frames[0])
    standing = [] if len(frames) == 1 else find(motion.lowest)
    likely = _likely(found, settings), _likely(standing, settings)
    rule = _rule(settings.masks, motion.lowest.shape, origin)
    if rule is not None:
        mask = np.zeros(motion.lowest.shape, dtype=bool)
        for left, top, right, bottom in rule.keep:
            mask[top:bottom, left:right] = True
        return _Cleaner(settings, find, Sector(mask, 1.0, "rule"), *likely, identifying)
    shown: np.ndarray | Motion = motion if motion.frames > 1 else frames[0]
    drawn = [text for text in [*found, *standing] if text.score > _MAYBE]
    sector = find_sector(shown, origin.regions, boxes_of(drawn))
    return _Cleaner(settings, find, sector, *likely, identifying)


def _rule(rules: Sequence[MaskRule], shape: tuple[int, ...], origin: Origin) -> MaskRule | None:
    for rule in rules:
        fits = rule.manufacturer.casefold() in ("", origin.manufacturer.casefold())
        fits = fits and rule.model.casefold() in ("", origin.model.casefold())
        if fits and (rule.rows, rule.columns) == shape[:2]:
            return rule
    return None


def _failed(error: Exception) -> str:
    return f"failed: {type(error).__name__}"  # its text may quote the file


def _like(mask: np.ndarray, frame: np.ndarray) -> np.ndarray:
    return mask if frame.ndim == 2 else np.repeat(mask[..., None], frame.shape[2], axis=2)
