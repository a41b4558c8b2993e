"""Bodies that callers send, and examples of what they get, for the OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from echostill.curation.selection.stage import SelectConfig
from echostill.platform.config import StageConfig

# Keys that name files, folders or machines of the service: not a caller's to set.
REFUSED_KEYS = frozenset({*StageConfig.model_fields, "exclude", "pin"}) - {"seed"}
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

ImageId = str
SAMPLE: dict[str, Any] = {
    "image_id": "00645c2de00bf7b419a1c32a3591dd9d",
    "row": 0,
    "group_id": "muscle/aponeurosis_img_00243",
    "source": "muscle/aponeurosis_img_00243.jpg",
    "organ": "muscle",
    "device": "",
    "label": "",
    "frame": 0,
    "width": 256,
    "height": 174,
    "cluster": 7,
    "cluster_size": 41,
    "cluster_rank": 3,
    "distance": 0.0123,
    "distance_rank": 4,
    "gradient": 1.94,
    "gradient_rank": 9,
    "dual_rank": 0.158,
    "quota": 12,
    "selected": True,
    "reason": "selected: 3rd of 41 in cluster 7, quota 12",
    "pin": None,
}
PAGE = {"items": [SAMPLE], "total": 300, "next": "WzUwLCAiNWYwYyJd"}
JOB = {
    "id": "20251124-120102-3f9a1c",
    "name": "half",
    "state": "running",
    "request": {"name": "half", "budget": 0.5, "seed": 1},
    "created": "2025-11-24T12:01:02Z",
    "stage": "selecting",
    "fraction": 0.1,
    "message": "",
    "started": "2025-11-24T12:01:02Z",
    "finished": None,
    "coreset": None,
}
PIN = {
    "id": "p-000001",
    "action": "pin",
    "kind": "image",
    "coreset": None,
    "cluster": None,
    "image_ids": [SAMPLE["image_id"]],
    "images": 1,
    "author": "anna",
    "reason": "typical four-chamber view",
    "time": "2025-11-24T12:10:00Z",
    "removed": None,
}


class Body(BaseModel):
    """Base of all bodies: unknown members are refused."""

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
        [], max_length=100, description="Values of the `?` in the text."
    )
    coreset: str | None = Field(None, description="The one that the view `coreset` shows.")
    limit: int = Field(
        1000, ge=1, le=5_000_000, description="Rows at most; 100,000 as JSON, whatever it says."
    )
    timeout: float = Field(10, gt=0, le=60, description="Seconds at most.")


class LookupBody(Body):
    """Rows and ids to look up."""

    rows: list[int] = Field([], max_length=1000, examples=[[0, 17, 4]])
    ids: list[ImageId] = Field([], max_length=1000)
    coreset: str | None = None


class ClusterOf(Body):
    """A cluster of a coreset."""

    coreset: str = Field(examples=["default"])
    cluster: int = Field(ge=0, le=2**31 - 1, examples=[7])


class Signed(Body):
    """Who does it, and why."""

    author: str = Field(min_length=1, max_length=200, examples=["anna"])
    reason: str = Field(min_length=1, max_length=1000, examples=["typical four-chamber view"])


class PinBody(Signed):
    """Images, or a cluster, to pin or ban."""

    action: Literal["pin", "ban"]
    images: list[ImageId] = Field([], max_length=10_000)
    cluster: ClusterOf | None = None


def selection_schema() -> dict[str, Any]:
    """The JSON schema of a request for a coreset: the keys of `echostill select` that are open."""
    schema = SelectConfig.model_json_schema()
    properties = {
        name: _open(value)
        for name, value in schema["properties"].items()
        if name not in REFUSED_KEYS and not value.get("execution")
    }
    properties["name"]["pattern"] = NAME_PATTERN
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
    """Names of the keys that a caller may set."""
    return set(selection_schema()["properties"])


def _open(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key != "execution"}
