"""Bodies of requests."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from echostill.curation.answer_files import EVERY_ROW
from echostill.curation.selection.methods import METHODS
from echostill.curation.selection.stage import SelectConfig
from echostill.platform.config import StageConfig

# Keys that name files, folders or machines of the service: callers cannot set them.
REFUSED_KEYS = frozenset({*StageConfig.model_fields, "exclude", "pin"}) - {"seed"}
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Body(BaseModel):
    """Base of all bodies: unknown members are rejected."""

    model_config = ConfigDict(extra="forbid")


class SqlBody(Body):
    """A query."""

    sql: str = Field(
        min_length=1,
        max_length=100_000,
        description="One SELECT over the views.",
        examples=["select organ, count(*) as images from pool group by organ"],
    )
    parameters: list[bool | int | float | str | None] = Field(
        [], max_length=100, description="Values of the `?` in the query."
    )
    coreset: str | None = Field(
        None, description="Name of the coreset that the view `coreset` shows."
    )
    limit: int = Field(
        1000, ge=1, le=EVERY_ROW, description="Rows at most; as JSON never more than 100,000."
    )
    timeout: float = Field(10, gt=0, le=60, description="Seconds at most.")


class LookupBody(Body):
    """Rows and ids to look up, 1,000 of each at most."""

    rows: list[int] = Field([], max_length=1000, examples=[[0, 17, 4]])
    ids: list[str] = Field([], max_length=1000)
    coreset: str | None = None


class ClusterOf(Body):
    """A cluster of a coreset."""

    coreset: str = Field(examples=["default"])
    cluster: int = Field(ge=0, le=2**31 - 1, examples=[7])


class Signed(Body):
    """Who makes a change, and why."""

    author: str = Field(min_length=1, max_length=200, examples=["anna"])
    reason: str = Field(min_length=1, max_length=1000, examples=["typical four-chamber view"])


class PinBody(Signed):
    """Images, or a cluster, to pin or ban."""

    action: Literal["pin", "ban"]
    images: list[str] = Field([], max_length=10_000)
    cluster: ClusterOf | None = None


class NewName(Body):
    """Another name for a result."""

    name: str = Field(min_length=1, max_length=200, examples=["coreset-2026"])


class WasteBody(Body):
    """What to delete of what the store does not need, as it is listed."""

    places: list[str] = Field(min_length=1, max_length=10_000, examples=[["coresets/half"]])


class Withdrawn(Body):
    """What to withdraw: an image_id, a group_id of the pool, or a patient's id in the files."""

    kind: Literal["image", "group", "patient"]
    value: str = Field(min_length=1, max_length=1000, examples=["lung/pat1"])
    issuer: str = Field("", max_length=200, description="Of a patient's id (IssuerOfPatientID).")
    reason: str = Field(
        "",
        max_length=1000,
        examples=["consent was withdrawn"],
        description="The receipt keeps it. Must not name anybody.",
    )


class WithdrawalBody(Withdrawn):
    """What to withdraw, as a preview has shown it."""

    images: int = Field(ge=0, description="How many images the preview said.")
    in_quarantine: int = Field(ge=0, description="How many rows in quarantine the preview said.")


class ReviewShown(Body):
    """All frames held back that a filter shows; `frames` is how many these are."""

    state: list[str] = Field([], max_length=100)
    reason: list[str] = Field([], max_length=100, examples=[["text"]])
    organ: list[str] = Field([], max_length=100)
    device: list[str] = Field([], max_length=100)
    group_id: list[str] = Field([], max_length=100)
    least: float = Field(0, ge=0, le=1)
    most: float = Field(1, ge=0, le=1)
    frames: int = Field(ge=1)


class ReviewBody(Signed):
    """Frames to decide on: by their ids, or all that a filter shows."""

    decision: Literal["approve", "reject", "undo"]
    images: list[str] = Field([], max_length=10_000)
    filter: ReviewShown | None = None


def selection_schema() -> dict[str, Any]:
    """The JSON schema of a request for a coreset: the keys of `echostill select` it may set."""
    schema = SelectConfig.model_json_schema()
    properties = {
        name: _without_execution(value)
        for name, value in schema["properties"].items()
        if name not in REFUSED_KEYS and not value.get("execution")
    }
    properties["name"]["pattern"] = NAME_PATTERN
    properties["method"]["choices"] = {name: method.first for name, method in METHODS.items()}
    found = {
        "title": "Selection",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": ["name"],
    }
    if "$defs" in schema:
        found["$defs"] = schema["$defs"]
    return found


def open_keys() -> set[str]:
    """Names of the keys that a request may set."""
    return set(selection_schema()["properties"])


def _without_execution(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key != "execution"}
