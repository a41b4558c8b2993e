"""Pins and bans."""

from typing import Literal

from pydantic import ConfigDict

from echostill.curation.service.http.models.base import IMAGE_ID, Action, Answer


class PinCounts(Answer):
    """How many images are pinned and banned."""

    pinned: int
    banned: int


class Signature(Answer):
    """Who did something, why, and when (UTC)."""

    author: str
    reason: str
    time: str


class Pin(Answer):
    """A pin or ban; ``image_ids`` has the first 100, ``images`` counts all."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "p-000001",
                    "action": "pin",
                    "kind": "image",
                    "coreset": None,
                    "cluster": None,
                    "image_ids": [IMAGE_ID],
                    "images": 1,
                    "author": "anna",
                    "reason": "typical four-chamber view",
                    "time": "2025-11-24T12:10:00Z",
                    "removed": None,
                }
            ]
        }
    )

    id: str
    action: Action
    kind: Literal["image", "cluster"]
    coreset: str | None
    cluster: int | None
    image_ids: list[str]
    images: int
    author: str
    reason: str
    time: str
    removed: Signature | None


class PinList(Answer):
    """Pins and bans, newest first."""

    items: list[Pin]
    counts: PinCounts
