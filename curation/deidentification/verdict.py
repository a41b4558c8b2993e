"""What became of a frame: whether it may pass, and what that stands on."""

import json
import re
from dataclasses import asdict, dataclass

import numpy as np

from echostill.curation.deidentification.brightness import Box


@dataclass(frozen=True)
class Verdict:
    """Whether a frame may pass, and the evidence for it.

    Attributes:
        reason: Why the frame needs review: ``text`` in the sector, ``sector`` (uncertain),
            ``redaction`` (of too much), ``declared`` (the file states that the picture identifies
            the patient) or ``failed: <error class>``; empty for a clean frame.
        score: Largest text score in the sector, 0..1.
        boxes: Boxes of likely text in the sector, in the frame's pixels; blackened ones too.
        confidence: Of the sector, 0..1.
        method: How the sector was found.
        cleaned: Content hash of the frame with its outside made black; an approval is valid only
            for these pixels. Empty if there are none, and for a clean frame.
        redacted: Share of the sector that was blackened for text in it, 0..1.
    """

    reason: str = ""
    score: float = 0.0
    boxes: tuple[Box, ...] = ()
    confidence: float = 0.0
    method: str = ""
    cleaned: str = ""
    redacted: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether the frame may pass."""
        return not self.reason

    def describe(self) -> str:
        """Describe the verdict in a sentence that :meth:`parse` can read."""
        boxes = " ".join(",".join(str(edge) for edge in box) for box in self.boxes)
        return (
            f"needs review ({self.reason}): text {self.score:.3f} at [{boxes}], sector by "
            f"{self.method or 'none'} with confidence {self.confidence:.3f}, "
            f"redacted {self.redacted:.3f}, cleaned pixels {self.cleaned or 'none'}"
        )

    @classmethod
    def parse(cls, text: str) -> "Verdict":
        """Parse the result of :meth:`describe`.

        Raises:
            ValueError: The text is not such a description.
        """
        match = _DESCRIBED.fullmatch(text)
        if match is None:
            raise ValueError("not the description of a verdict")
        reason, score, written, method, confidence, redacted, cleaned = match.groups()
        boxes = []
        for box in written.split():
            left, top, right, bottom = (int(edge) for edge in box.split(","))
            boxes.append((left, top, right, bottom))
        return cls(
            reason,
            float(score),
            tuple(boxes),
            float(confidence),
            "" if method == "none" else method,
            "" if cleaned == "none" else cleaned,
            float(redacted),
        )


@dataclass(frozen=True)
class Context:
    """What the frames held back are sorted by for review: as the pool's row would have it."""

    organ: str = ""
    device: str = ""
    group: str = ""

    def describe(self) -> str:
        """Describe it for the end of a verdict's description; :func:`split_context` reads it."""
        return _CONTEXT + json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)


_CONTEXT = "; of "


def split_context(message: str) -> tuple[Verdict, Context]:
    """Read a verdict's description, and the context behind it if there is one.

    Raises:
        ValueError: The message is not such a description.
    """
    verdict, mark, context = message.partition(_CONTEXT)
    return Verdict.parse(verdict), Context(**json.loads(context)) if mark else Context()


_DESCRIBED = re.compile(
    r"needs review \((.+)\): text ([\d.]+) at \[(.*)\], sector by (\S+) with confidence ([\d.]+), "
    r"redacted ([\d.]+), cleaned pixels (\w+)"
)


@dataclass(frozen=True)
class Cleaned:
    """A frame after de-identification.

    ``pixels`` are the frame with its outside (and redacted text) blackened; None where that failed,
    or where there was no frame. They may be stored only if the verdict is clean, or approved.
    """

    pixels: np.ndarray | None
    verdict: Verdict
