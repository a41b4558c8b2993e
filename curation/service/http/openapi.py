"""The OpenAPI document: the routes' own declarations, and what is common to all of them."""

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from echostill.curation.service.http.models.health import Problem
from echostill.curation.service.problems import MEDIA_TYPE

OPEN_PATHS = ("/healthz", "/readyz")
SCHEMAS = "#/components/schemas/"
A_PROBLEM = {"content": {MEDIA_TYPE: {"schema": {"$ref": f"{SCHEMAS}Problem"}}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The token is missing or wrong.", **A_PROBLEM},
    "default": {"description": "A problem.", **A_PROBLEM},
}


def document_problems_and_token(app: FastAPI, paths: Sequence[str]) -> None:
    """Add the schema of problems, and the token that all but the health checks require.

    Args:
        app: the application.
        paths: all that are documented, in the document's order.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        components = document.setdefault("components", {})
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        _, found = models_json_schema(
            [(Problem, "serialization")], ref_template=SCHEMAS + "{model}"
        )
        components["schemas"] = dict(
            sorted({**components.get("schemas", {}), **found["$defs"]}.items())
        )
        document["paths"] = {path: document["paths"][path] for path in dict.fromkeys(paths)}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in OPEN_PATHS else [{"token": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def openapi_text(app: FastAPI) -> str:
    """Return the document as text, the same bytes each time."""
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"
