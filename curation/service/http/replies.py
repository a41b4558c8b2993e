"""What routes share: the desk they work at, and how values become responses."""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any

from anyio import CapacityLimiter
from fastapi import Depends, Query, Request
from fastapi.responses import Response

from echostill.curation.service.answers.uploads import TeacherFeatures
from echostill.curation.service.data.pages import Finder
from echostill.curation.service.data.state import State
from echostill.curation.service.http.security import Meters
from echostill.curation.service.jobs.queue import Jobs
from echostill.curation.service.problems import MEDIA_TYPE, Problem
from echostill.curation.service.sql.workers import SqlPool

ARROW = "application/vnd.apache.arrow.stream"


@dataclass
class Desk:
    """Everything that answers are made from."""

    state: State
    finder: Finder
    sql: SqlPool
    teacher: TeacherFeatures
    meters: Meters
    jobs: Jobs = field(init=False)
    # Threads of their own for SQL, so that queries which wait never hold those of look-ups.
    sql_limiter: CapacityLimiter = field(init=False)
    stream_limiter: CapacityLimiter = field(init=False)
    sql_waiting: int = 0

    def measure(self) -> None:
        """Bring the gauges up to date."""
        ready = self.state.ready
        self.meters.ready.set(int(ready))
        self.meters.images.set(len(self.state.catalogue) if ready else 0)
        for state, count in self.jobs.counts().items():
            self.meters.jobs.labels(state).set(count)

    def close(self) -> None:
        """End everything that runs."""
        self.jobs.close()
        self.sql.close()
        self.state.close()


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


async def _desk_now(request: Request) -> Desk:
    # As a coroutine it needs no thread of its own.
    return _desk(request)


AtDesk = Annotated[Desk, Depends(_desk_now)]
CoresetName = Annotated[
    str | None,
    Query(max_length=200, description="Name of a coreset; 'default', or the newest, if left out."),
]


def json_reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = body.encode("utf-8", "replace")
    return Response(data, status, headers, media_type="application/json")


def problem_reply(problem: Problem) -> Response:
    """Answer with a problem."""
    body = json.dumps(problem.as_dict(), ensure_ascii=True).encode()
    return Response(body, problem.status, problem.headers, media_type=MEDIA_TYPE)


def example(value: Any, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Describe an answer by an example, for the OpenAPI document."""
    content = {"application/json": {"example": value}}
    return {status: {"description": "The answer.", "content": content}}


def arrow_example() -> dict[int | str, dict[str, Any]]:
    """Describe an answer that is an Arrow stream."""
    return {200: {"description": "An Arrow IPC stream.", "content": {ARROW: {}}}}


def tagged(request: Request, tag: str) -> Response | None:
    """Return a 304 where the caller holds the answer of this tag already."""
    held = request.headers.get("if-none-match", "")
    if tag in [entry.strip() for entry in held.split(",")]:
        return Response(status_code=304, headers=cache_headers(tag))
    return None


def cache_headers(tag: str) -> dict[str, str]:
    """Headers of an answer that does not change under its tag."""
    return {"ETag": tag, "Cache-Control": "private, max-age=86400"}
