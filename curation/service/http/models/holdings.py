"""What the store holds under names."""

from typing import Any, Literal

from pydantic import ConfigDict

from echostill.curation.service.http.models.base import Answer

Kind = Literal["coreset", "run", "report", "teacher cache", "sweep"]
EXAMPLE: dict[str, Any] = {
    "place": "coresets/half",
    "kind": "coreset",
    "name": "half",
    "finished": True,
    "bytes": 81920,
    "written": "2026-03-02T10:00:00Z",
    "made_from": {"pool": "pool", "scores": "scores"},
    "used_by": ["runs/distilled-0"],
    "details": "118 of 236 by coverage",
}


class HeldResult(Answer):
    """A named result; ``made_from`` names what of the store each of its inputs is."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    place: str
    kind: Kind
    name: str
    finished: bool
    bytes: int
    written: str
    made_from: dict[str, str]
    used_by: list[str]
    details: str


class HeldResults(Answer):
    """The named results of a store, by place."""

    items: list[HeldResult]


class Deletion(Answer):
    """What was deleted, or with `dry_run` would be."""

    deleted: bool
    result: HeldResult


class Waste(Answer):
    """What a store does not need, and why; `place` is a folder of the store."""

    place: str
    bytes: int
    reason: str


class WasteList(Answer):
    """All that a store does not need."""

    items: list[Waste]


class Collected(Answer):
    """How much was deleted."""

    places: list[str]
    bytes: int
