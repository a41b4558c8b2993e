"""Parameters of a request, checked all at once.

FastAPI takes each parameter by itself and looks at its declaration again in every request: for a
page of samples, which has fourteen, that took longer than the answer. Here pydantic checks them
together, by the same declarations.
"""

import inspect
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from fastapi import Request, Response, params
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError, create_model

from echostill.curation.service.http.context import Context

SIMPLE = {str, int, float, bool, type(None)}
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(APIRoute):
    """A route that answers valid requests itself and leaves all others to FastAPI.

    So the errors, and the OpenAPI document, are FastAPI's own. Routes that read a body or headers,
    have dependencies besides the context, or are coroutines, are FastAPI's as a whole.
    """

    def get_route_handler(self) -> Handler:
        """Return what answers a request."""
        checked = super().get_route_handler()
        known = _Parameters.of(self.endpoint, set(self.param_convertors))
        if known is None or self.dependencies:  # what must be checked first, FastAPI checks
            return checked
        endpoint: Callable[..., Response] = self.endpoint

        async def answer(request: Request) -> Response:
            try:
                values = known.values(request)
            except ValidationError:
                return await checked(request)
            return await run_in_threadpool(endpoint, **values)

        return answer


class _Parameters:
    """The parameters of a function that answers: of the path, of the query, and the context."""

    def __init__(self, model: type[BaseModel], lists: set[str], given: dict[str, str]) -> None:
        self._model, self._lists, self._given = model, lists, given

    @classmethod
    def of(cls, endpoint: Callable[..., Any], in_path: set[str]) -> "_Parameters | None":
        """Read a function's declarations; None where there is one of another kind."""
        hints = get_type_hints(endpoint, include_extras=True)
        kind = hints.pop("return", None)
        answers = isinstance(kind, type) and issubclass(kind, Response)
        if inspect.iscoroutinefunction(endpoint) or not answers:
            return None
        fields: dict[str, Any] = {}
        lists: set[str] = set()
        given: dict[str, str] = {}
        for name, parameter in inspect.signature(endpoint).parameters.items():
            hint, needed = hints[name], parameter.default is parameter.empty
            if hint == Context or hint is Request:
                given[name] = "request" if hint is Request else "context"
                continue
            if not _is_simple(hint):
                return None
            fields[name] = (hint, ... if needed else parameter.default)
            if name not in in_path and get_origin(_bare(hint)) is list:
                lists.add(name)
        return cls(create_model(endpoint.__name__, **fields), lists, given)

    def values(self, request: Request) -> dict[str, Any]:
        """Return the arguments that a request gives the function.

        Raises:
            ValidationError: One is missing or invalid.
        """
        found: dict[str, Any] = {}
        for name, value in request.query_params.multi_items():
            if name in self._lists:
                found.setdefault(name, []).append(value)
            else:
                found[name] = value  # of a repeated one, the last
        found.update(request.path_params)
        values = dict(self._model.model_validate(found).__dict__)
        for name, kind in self._given.items():
            values[name] = request if kind == "request" else request.app.state.context
        return values


def _bare(hint: Any) -> Any:
    """A type without what ``Annotated`` says of it."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _is_simple(hint: Any) -> bool:
    """Whether a parameter is texts and numbers of the path or the query, under its own name."""
    said = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    if any(not isinstance(one, params.Path | params.Query) or one.alias for one in said):
        return False
    return all(kind in SIMPLE for kind in _kinds(_bare(hint)))


def _kinds(hint: Any) -> set[Any]:
    """The types that a type is made of."""
    if get_origin(hint) is Literal:
        return {type(value) for value in get_args(hint)}
    return {kind for part in get_args(hint) for kind in _kinds(part)} or {hint}
