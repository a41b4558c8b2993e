"""Direct routes against FastAPI's own, for the same requests."""

import asyncio
import json
from typing import Annotated, Literal
from urllib.parse import quote

import pytest
from fastapi import APIRouter, Body, Depends, FastAPI, Header, HTTPException, Path, Query, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from echostill.curation.service.http.context import Context
from echostill.curation.service.parameters import DirectRoute, _Parameters

Texts = Annotated[list[str], Query(max_length=3)]


class Filter(BaseModel):
    a: int = 1


def shown(
    context: Context,
    request: Request,
    image: Annotated[str, Path(max_length=5)],
    number: Annotated[int, Path(ge=-9, le=9)],
    q: Annotated[str, Query(min_length=1, max_length=4)],
    kind: Literal["true", "false", "any"] = "any",
    organ: Texts = [],  # noqa: B006
    min: Annotated[Texts, Query(examples=["x"])] = [],  # noqa: B006
    cluster: Annotated[list[int], Query(max_length=2)] = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1, le=50)] = 20,
    share: float = 0.5,
    unique: bool = False,
    cursor: Annotated[str | None, Query(max_length=4)] = None,
) -> Response:
    values = dict(locals())
    values["context"], values["request"] = context, str(request.url)
    return Response(repr(values))


async def coroutine(q: str) -> Response: ...
def with_body(q: Annotated[str, Body()]) -> Response: ...
def with_header(q: Annotated[str, Header()]) -> Response: ...
def with_model(q: Annotated[Filter, Query()]) -> Response: ...
def with_alias(q: Annotated[str, Query(alias="p")]) -> Response: ...
def with_values(q: str) -> dict[str, str]: ...


def application(kind, **options):
    router = APIRouter(route_class=kind, **options)
    router.get("/{image}/{number}", response_class=Response)(shown)
    app = FastAPI()
    app.state.context = "the context"
    app.include_router(router)
    return app


DIRECT, OWN = application(DirectRoute), application(APIRoute)


def answer(app, path, query):
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(b"host", b"x")],
        "server": ("x", 80),
    }
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(part.get("body", b"") for part in sent[1:])


OPTIONAL = ["kind", "organ", "min", "cluster", "limit", "share", "unique", "cursor"]
NAMES = ["q", *OPTIONAL, "image", "context", "other"]
NUMERIC = ["3", "-3", "51", "0.5", "1e3", "nan", " 7"]
VALUES = ["", "a", "true", "any", *NUMERIC, "abcde", "ä", "%", "[]"]


@settings(deadline=None, max_examples=150)
@given(
    path=st.sampled_from(["/a/1", "/abcdef/1", "/a/10", "/a/x", "/a/-9", "/ä/3"]),
    pairs=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=6),
    q=st.sampled_from(["q=a", "q=abc&q=b", "q=", ""]),
)
@example(path="/a/1", pairs=[("organ", "a"), ("organ", ""), ("cluster", "3")], q="q=a")
@example(path="/a/1", pairs=[("min", "a")] * 4, q="q=a")
def test_a_direct_route_answers_as_fastapi_does(path, pairs, q):
    query = "&".join([q, *(f"{name}={quote(value)}" for name, value in pairs)])
    assert answer(DIRECT, path, query) == answer(OWN, path, query)


def test_a_direct_route_gives_what_was_declared():
    status, body = answer(DIRECT, "/a/1", "q=a&organ=b&organ=c&limit=7&unique=yes")
    assert status == 200
    assert b"'organ': ['b', 'c']" in body
    assert b"'limit': 7" in body
    assert b"'context': 'the context'" in body
    assert json.loads(answer(DIRECT, "/a/1", "q=a&limit=0")[1])["detail"][0]["loc"] == [
        "query",
        "limit",
    ]


def test_dependencies_come_before_a_direct_answer():
    def refuse():
        raise HTTPException(403)

    guarded = application(DirectRoute, dependencies=[Depends(refuse)])
    assert answer(guarded, "/a/1", "q=a")[0] == 403


@pytest.mark.parametrize(
    "endpoint", [coroutine, with_body, with_header, with_model, with_alias, with_values]
)
def test_other_kinds_are_left_to_fastapi(endpoint):
    assert _Parameters.declared(endpoint, set()) is None
    assert _Parameters.declared(shown, {"image", "number"}) is not None
