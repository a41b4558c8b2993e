"""Answers about the service itself, and errors."""

from typing import Literal

from pydantic import Field

from echostill.curation.service.http.models.base import Answer, OpenAnswer

Readiness = Literal["ready", "building", "failed", "absent"]


class IndexState(Answer):
    """Progress of the derived files."""

    state: Readiness
    stage: str
    fraction: float
    message: str


class MapState(Answer):
    """Whether there is a map."""

    state: Readiness


class Health(Answer):
    """The process runs."""

    status: Literal["ok"]


class Starting(Answer):
    """The service is not ready yet."""

    status: Literal["starting"]
    index: IndexState


class InvalidValue(Answer):
    """A value of a request that is not valid."""

    where: str = Field(examples=["budget"])
    message: str


class Problem(OpenAnswer):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:echostill:problem:unknown-coreset"])
    title: str = Field(examples=["Unknown coreset"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no coreset 'defalt'. Did you mean 'default'?"])
    errors: list[InvalidValue] | None = None
