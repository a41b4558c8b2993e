"""Results of queries, and the views that they read."""

from typing import Any

from echostill.curation.service.http.models.base import Answer


class Column(Answer):
    """A column of a view or result."""

    name: str
    type: str


class QueryResult(Answer):
    """Rows of a query; ``truncated`` says whether there are more."""

    columns: list[Column]
    rows: list[list[Any]]
    truncated: bool
    elapsed_ms: float


class View(Answer):
    """A view that queries can read."""

    name: str
    columns: list[Column]


class ViewList(Answer):
    """All views."""

    items: list[View]
