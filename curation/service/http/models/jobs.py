"""Jobs, and the schema of their requests."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from echostill.curation.service.http.models.base import Answer, OpenAnswer


class Job(Answer):
    """A pick in the background. Times are UTC, ISO 8601."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "20251124-120102-118034-3f9a",
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
            ]
        }
    )

    id: str
    name: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    request: dict[str, Any]
    created: str
    stage: str
    fraction: float
    message: str
    started: str | None
    finished: str | None
    coreset: str | None


class JobList(Answer):
    """The latest jobs, newest first."""

    items: list[Job]


class SelectionKey(OpenAnswer):
    """A key of a selection, as JSON schema describes it; ``choices`` says what some values do."""

    type: str | None = None
    description: str | None = None
    default: Any = None
    enum: list[str] | None = None
    choices: dict[str, str] | None = None
    any_of: list["SelectionKey"] | None = Field(None, alias="anyOf")


class Selection(OpenAnswer):
    """The JSON schema of a request for a coreset."""

    properties: dict[str, SelectionKey]
    required: list[str]


class OrganEstimate(Answer):
    """An organ: images that may be chosen, and about how many are."""

    value: str
    images: int
    selected: int


class Estimate(Answer):
    """What a selection would give; ``seconds`` is how long the last pick here took."""

    budget: int
    images: int
    clusters: int
    balanced: bool
    organs: list[OrganEstimate]
    seconds: float | None
