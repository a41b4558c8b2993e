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

SIMPLE = {str, int, float, bool, type(None)}
FromRequest = Callable[[Request], Any]
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(APIRoute):
    """A route that answers valid requests itself and leaves all others to FastAPI.

    So the errors, and the OpenAPI document, are FastAPI's own. Routes that read a body or headers,
    have dependencies besides the context, or are coroutines, are FastAPI's as a whole.
    """

    def get_route_handler(self) -> Handler:
        """Return what answers a request."""
        checked = super().get_route_handler()
        known = _Parameters.declared(self.endpoint, set(self.param_convertors))
        if known is None or self.dependencies:  # what must be checked first, FastAPI checks
            return checked
        endpoint: Callable[..., Response] = self.endpoint

        async def answer(request: Request) -> Response:
            try:
                values = known.values(request)
            except ValidationError:
                return await checked(request)
            values |= await known.of(request)
            return await run_in_threadpool(endpoint, **values)

        return answer


class _Parameters:
    """The parameters of a function that answers: of the path, of the query, of the request."""

    def __init__(
        self, model: type[BaseModel], lists: set[str], given: dict[str, FromRequest]
    ) -> None:
        self._model, self._lists, self._given = model, lists, given

    @classmethod
    def declared(cls, endpoint: Callable[..., Any], in_path: set[str]) -> "_Parameters | None":
        """Read a function's declarations; None where there is one of another kind."""
        hints = get_type_hints(endpoint, include_extras=True)
        kind = hints.pop("return", None)
        answers = isinstance(kind, type) and issubclass(kind, Response)
        if inspect.iscoroutinefunction(endpoint) or not answers:
            return None
        fields: dict[str, Any] = {}
        lists: set[str] = set()
        given: dict[str, FromRequest] = {}
        for name, parameter in inspect.signature(endpoint).parameters.items():
            hint, needed = hints[name], parameter.default is parameter.empty
            from_request = _from_request(hint)
            if from_request is not None:
                given[name] = from_request
                continue
            if not _is_simple(hint):
                return None
            fields[name] = (hint, ... if needed else parameter.default)
            if name not in in_path and get_origin(_bare(hint)) is list:
                lists.add(name)
        return cls(create_model(endpoint.__name__, **fields), lists, given)

    def values(self, request: Request) -> dict[str, Any]:
        """Return the arguments that path and query give the function.

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
        return dict(self._model.model_validate(found).__dict__)

    async def of(self, request: Request) -> dict[str, Any]:
        """Return the arguments that are made of the request itself."""
        made = {name: make(request) for name, make in self._given.items()}
        return {name: await one if inspect.isawaitable(one) else one for name, one in made.items()}


def _bare(hint: Any) -> Any:
    """A type without what ``Annotated`` says of it."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _from_request(hint: Any) -> FromRequest | None:
    """What makes a parameter of the request alone: itself, or a dependency on nothing else."""
    if hint is Request:
        return lambda request: request
    for one in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
        make = one.dependency if isinstance(one, params.Depends) else None
        if make is None or inspect.isgeneratorfunction(make) or inspect.isasyncgenfunction(make):
            continue
        if [each.annotation for each in inspect.signature(make).parameters.values()] == [Request]:
            return make
    return None


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
