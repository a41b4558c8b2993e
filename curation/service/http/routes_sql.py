"""Routes of SQL."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Body, Header, Request
from fastapi.responses import Response, StreamingResponse

from echostill.curation.service.http.replies import ARROW, AtDesk, Desk, example, json_reply
from echostill.curation.service.http.requests import SqlBody
from echostill.curation.service.problems import Problem, bad_request
from echostill.curation.service.sql.views import describe_views, view_columns
from echostill.curation.service.sql.workers import Query

router = APIRouter(prefix="/v1", tags=["sql"])

ROWS_AS_JSON = 100_000
WAITING_MAX = 64  # queries that may wait for the workers; more are turned away at once
LOOK_EVERY = 0.1  # seconds between looks whether the caller is still there
RESULT = {
    "columns": [{"name": "organ", "type": "VARCHAR"}, {"name": "images", "type": "BIGINT"}],
    "rows": [["fetal_head", 350]],
    "truncated": False,
}


@router.post("/sql", responses=example(RESULT))
async def sql(
    desk: AtDesk,
    request: Request,
    body: Annotated[SqlBody, Body()],
    accept: Annotated[str, Header(max_length=500)] = "application/json",
) -> Response:
    """Run one SELECT over the views."""
    if "\x00" in body.sql:
        raise bad_request("the text has a zero byte.")
    arrow = ARROW in accept
    description = await anyio.to_thread.run_sync(describe_views, desk.state, body.coreset)
    query = Query(
        sql=body.sql,
        parameters=body.parameters,
        limit=body.limit if arrow else min(body.limit, ROWS_AS_JSON),
        timeout=body.timeout,
        arrow=arrow,
        description=description,
    )
    return await _answer(desk, request, query)


async def _answer(desk: Desk, request: Request, query: Query) -> Response:
    if desk.sql_waiting >= WAITING_MAX:
        raise Problem(429, "busy", "too many queries wait.", headers={"Retry-After": "1"})
    gone = anyio.Event()
    pieces = desk.sql.run(query, gone.is_set)
    begin = _next if query.arrow else _whole
    desk.sql_waiting += 1
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_watch, request, gone)
            first = await anyio.to_thread.run_sync(begin, pieces, limiter=desk.sql_limiter)
            group.cancel_scope.cancel()
    finally:
        desk.sql_waiting -= 1
    if isinstance(first, Exception):
        raise first
    if not query.arrow:
        return Response(first or b"", media_type="application/json")
    return StreamingResponse(_stream(desk, first, pieces), media_type=ARROW)


async def _stream(desk: Desk, first: bytes | None, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Hand on the pieces; when the caller leaves, the rest is not computed."""
    # Not in the threads in which others wait for a worker: this one has to give its own back.
    own = desk.stream_limiter
    try:
        piece = first
        while piece is not None:
            yield piece
            found = await anyio.to_thread.run_sync(_next, pieces, limiter=own)
            if isinstance(found, Exception):
                raise found
            piece = found
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_close, pieces, limiter=own)


async def _watch(request: Request, gone: anyio.Event) -> None:
    while not gone.is_set():
        await anyio.sleep(LOOK_EVERY)
        if await request.is_disconnected():
            gone.set()


def _next(pieces: Iterator[bytes]) -> bytes | Exception | None:
    """Return the next piece, None at the end; an error as a value, past the task group."""
    try:
        return next(pieces, None)
    except Problem as problem:
        return problem


def _whole(pieces: Iterator[bytes]) -> bytes | Exception:
    """Return all pieces, their worker given back; an error as a value."""
    try:
        return b"".join(pieces)
    except Problem as problem:
        return problem


def _close(pieces: Iterator[bytes]) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        close()


@router.get("/sql/views", responses=example({"items": [{"name": "pool", "columns": []}]}))
def views(desk: AtDesk) -> Response:
    """The views and their columns."""
    return json_reply({"items": view_columns(describe_views(desk.state, None))})
