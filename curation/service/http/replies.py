"""How values become responses, and how the OpenAPI document describes them.

Responses are declared (``documented``), not validated again on the way out: that would cost the hot
routes more than the answers themselves. Tests validate every answer against its declared model.
"""

import hashlib
import json
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from echostill.curation.service.problems import MEDIA_TYPE, Problem

JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
ARROW = "application/vnd.apache.arrow.stream"
BINARY = {"schema": {"type": "string", "format": "binary"}}
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "The caller already has this answer (`If-None-Match`)."}
}


def json_reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON."""
    data = JSON.encode(value).encode("utf-8", "replace")
    return Response(data, status, headers, media_type="application/json")


def problem_reply(problem: Problem) -> Response:
    """Answer with a problem."""
    body = json.dumps(problem.as_dict(), ensure_ascii=True).encode()
    return Response(body, problem.status, problem.headers, media_type=MEDIA_TYPE)


def documented(
    model: type[BaseModel], status: int = 200, *, or_file: str | None = None
) -> dict[int | str, dict[str, Any]]:
    """Describe a JSON answer by its model, and the media type that callers may accept instead."""
    found: dict[str, Any] = {"description": "The answer.", "model": model}
    if or_file is not None:
        found["content"] = {or_file: BINARY}
    return {status: found}


def files(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """Describe an answer that is a file of one of some media types."""
    return {200: {"description": "A file.", "content": dict.fromkeys(media_types, BINARY)}}


def entity_tag(text: str) -> str:
    """Return an ETag for an answer that is determined by a text."""
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:24]}"'


def not_modified(request: Request, tag: str) -> Response | None:
    """Return a 304 if the caller already has the answer with this tag."""
    known = request.headers.get("if-none-match", "")
    if tag in [entry.strip() for entry in known.split(",")]:
        return Response(status_code=304, headers=cache_headers(tag))
    return None


def cache_headers(tag: str) -> dict[str, str]:
    """Headers of an answer that does not change under its tag."""
    return {"ETag": tag, "Cache-Control": "private, max-age=86400"}
