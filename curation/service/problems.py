"""Errors of the service: as HTTP names them (RFC 9457), in the words of the tool."""

from dataclasses import dataclass, field
from typing import Any

from echostill.platform.errors import EchostillError, UsageError

PREFIX = "urn:echostill:problem:"
MEDIA_TYPE = "application/problem+json"


@dataclass
class Problem(Exception):  # noqa: N818 (a problem is what the standard calls it)
    """An answer that says why there is none.

    Attributes:
        status: of HTTP.
        kind: last part of the type, such as ``unknown-image``.
        detail: a sentence for a person.
        more: further members of the answer.
        headers: further headers.
    """

    status: int
    kind: str
    detail: str
    more: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.detail

    def as_dict(self) -> dict[str, Any]:
        """Return the answer's body."""
        title = self.kind.replace("-", " ")
        return {
            "type": PREFIX + self.kind,
            "title": title[:1].upper() + title[1:],
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }


def bad_request(detail: str) -> Problem:
    """A value, filter or cursor that makes no sense."""
    return Problem(400, "bad-request", detail)


def unknown(what: str, detail: str) -> Problem:
    """Nothing of that name: ``what`` is image, coreset, cluster, job or pin."""
    return Problem(404, f"unknown-{what}", detail)


def conflict(detail: str) -> Problem:
    """The request does not fit what is there."""
    return Problem(409, "conflict", detail)


def not_ready(detail: str, seconds: int = 5) -> Problem:
    """Something is still being made."""
    return Problem(503, "not-ready", detail, headers={"Retry-After": str(seconds)})


def busy(detail: str, seconds: int = 1) -> Problem:
    """Too much is running."""
    return Problem(429, "busy", detail, headers={"Retry-After": str(seconds)})


def from_error(error: EchostillError) -> Problem:
    """Turn an error of the tool into a problem: wrong usage is 422, failed work 500."""
    if isinstance(error, UsageError):
        return Problem(422, "invalid", str(error))
    return Problem(500, "failed", str(error))
