"""Routes of SQL queries."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Body, Header, Request
from fastapi.responses import Response, StreamingResponse

from echostill.curation.service.http.context import Context, ServiceContext
from echostill.curation.service.http.models.sql import QueryResult, ViewList
from echostill.curation.service.http.replies import ARROW, documented, json_reply
from echostill.curation.service.http.requests import SqlBody
from echostill.curation.service.problems import Problem, bad_request, busy
from echostill.curation.service.sql.views import describe_views, view_columns
from echostill.curation.service.sql.workers import Query

router = APIRouter(prefix="/v1", tags=["sql"], default_response_class=Response)

ROWS_AS_JSON = 100_000
WAITING_MAX = 64  # queries that may wait for the workers; further ones are rejected at once
POLL_SECONDS = 0.1  # between checks whether the caller is still connected


@router.post("/sql", responses=documented(QueryResult, or_file=ARROW))
async def sql(
    context: Context,
    request: Request,
    body: Annotated[SqlBody, Body()],
    accept: Annotated[str, Header(max_length=500)] = "application/json",
) -> Response:
    """Run one SELECT over the views."""
    if "\x00" in body.sql:
        raise bad_request("the query contains a zero byte.")
    arrow = ARROW in accept
    description = await anyio.to_thread.run_sync(describe_views, context.state, body.coreset)
    query = Query(
        sql=body.sql,
        parameters=body.parameters,
        limit=body.limit if arrow else min(body.limit, ROWS_AS_JSON),
        timeout=body.timeout,
        arrow=arrow,
        description=description,
    )
    return await _answer(context, request, query)


async def _answer(context: ServiceContext, request: Request, query: Query) -> Response:
    if context.sql_waiting >= WAITING_MAX:
        raise busy("too many queries are waiting: try again in a moment.")
    disconnected = anyio.Event()
    pieces = context.sql.run(query, disconnected.is_set)
    begin = _next if query.arrow else _whole
    context.sql_waiting += 1
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_watch, request, disconnected)
            first = await anyio.to_thread.run_sync(begin, pieces, limiter=context.sql_limiter)
            group.cancel_scope.cancel()
    finally:
        context.sql_waiting -= 1
    if isinstance(first, Exception):
        raise first
    if not query.arrow:
        return Response(first or b"", media_type="application/json")
    return StreamingResponse(_stream(context, first, pieces), media_type=ARROW)


async def _stream(
    context: ServiceContext, first: bytes | None, pieces: Iterator[bytes]
) -> AsyncIterator[bytes]:
    """Send the pieces; when the caller disconnects, the rest is not computed."""
    # In threads of its own: those of `sql_limiter` may all be waiting for this stream's worker.
    own = context.stream_limiter
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


async def _watch(request: Request, disconnected: anyio.Event) -> None:
    while not disconnected.is_set():
        await anyio.sleep(POLL_SECONDS)
        if await request.is_disconnected():
            disconnected.set()


def _next(pieces: Iterator[bytes]) -> bytes | Exception | None:
    """Return the next piece, None at the end; errors as values, which a task group lets through."""
    try:
        return next(pieces, None)
    except Problem as problem:
        return problem


def _whole(pieces: Iterator[bytes]) -> bytes | Exception:
    """Return all pieces, after which the worker is free again; errors as values."""
    try:
        return b"".join(pieces)
    except Problem as problem:
        return problem


def _close(pieces: Iterator[bytes]) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        close()


@router.get("/sql/views", responses=documented(ViewList))
def views(context: Context) -> Response:
    """The views and their columns."""
    return json_reply({"items": view_columns(describe_views(context.state, None))})
