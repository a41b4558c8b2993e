"""Errors of the service, as HTTP names them (RFC 9457), and of the tool, as Python raises them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from echostill.platform.errors import EchostillError, UsageError

PREFIX = "urn:echostill:problem:"
MEDIA_TYPE = "application/problem+json"


@dataclass
class Problem(Exception):  # noqa: N818 (a problem is what the standard calls it)
    """An error as the service answers it.

    Attributes:
        status: of HTTP.
        kind: last part of the type, such as ``unknown-image``.
        detail: a sentence for the user.
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
            "title": (title[:1].upper() + title[1:]).replace("Sql", "SQL"),
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }


def bad_request(detail: str) -> Problem:
    """An invalid value, filter or cursor."""
    return Problem(400, "bad-request", detail)


def unknown(what: str, detail: str) -> Problem:
    """Nothing of that name: ``what`` is image, coreset, cluster, job or pin."""
    return Problem(404, f"unknown-{what}", detail)


def conflict(detail: str) -> Problem:
    """The request conflicts with the state of the store."""
    return Problem(409, "conflict", detail)


def not_ready(detail: str, seconds: int = 5) -> Problem:
    """Something is still being prepared."""
    return Problem(503, "not-ready", detail, headers={"Retry-After": str(seconds)})


def busy(detail: str, seconds: int = 1) -> Problem:
    """Too many heavy requests are running."""
    return Problem(429, "busy", detail, headers={"Retry-After": str(seconds)})


def error_of(status: int, detail: str) -> EchostillError:
    """Return the tool's error for an HTTP status.

    Wrong requests (4xx) are a UsageError. A request that may succeed later (408, 429) and a service
    that failed (5xx) are an EchostillError.
    """
    wrong = status < 500 and status not in (408, 429)
    return UsageError(detail) if wrong else EchostillError(detail)


@contextmanager
def tool_errors() -> Iterator[None]:
    """Raise problems as errors of the tool, for answers without HTTP."""
    try:
        yield
    except Problem as problem:
        raise error_of(problem.status, problem.detail) from None


def from_error(error: EchostillError) -> Problem:
    """Turn an error of the tool into a problem: wrong usage is 422, failed work 500."""
    if isinstance(error, UsageError):
        return Problem(422, "invalid", str(error))
    return Problem(500, "failed", str(error))
