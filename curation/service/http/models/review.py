"""Frames that were held back for review."""

from typing import Literal

from pydantic import ConfigDict

from echostill.curation.service.http.models.base import IMAGE_ID, Answer, Count

State = Literal["open", "approved", "rejected"]


class HeldBack(Answer):
    """A frame that was held back; boxes are left, top, right, bottom in the original's pixels."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "image_id": IMAGE_ID,
                    "source": "ward 3/scan_0012.dcm",
                    "reason": "text",
                    "score": 0.97,
                    "boxes": [[40, 12, 190, 31]],
                    "confidence": 1.0,
                    "method": "regions",
                    "redacted": 0.0,
                    "organ": "liver",
                    "device": "",
                    "group_id": "7f3a",
                    "picture": True,
                    "state": "open",
                    "decided_by": "",
                    "decided_reason": "",
                    "approvable": True,
                }
            ]
        }
    )

    image_id: str
    source: str
    reason: str
    score: float
    boxes: list[list[int]]
    confidence: float
    method: str
    redacted: float
    organ: str
    device: str
    group_id: str
    picture: bool
    state: State
    decided_by: str
    decided_reason: str
    approvable: bool


class ReviewFacets(Answer):
    """By column, its values and how many frames each would show."""

    state: list[Count]
    reason: list[Count]
    organ: list[Count]
    device: list[Count]
    group_id: list[Count]


class ReviewList(Answer):
    """A page of frames: `total` pass the filters of all `held_back`; `next` is an offset."""

    items: list[HeldBack]
    total: int
    next: int | None
    held_back: int
    facets: ReviewFacets


class Decided(Answer):
    """How many frames were decided on; `left` are those without cleaned pixels to approve."""

    decided: int
    left: list[str]
