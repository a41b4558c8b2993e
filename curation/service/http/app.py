"""The application: its routes, error handlers, the explorer's files, its start and its end."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse

from echostill.curation.service.answers.uploads import TeacherFeatures
from echostill.curation.service.data.pages import SampleFinder
from echostill.curation.service.data.review import ReviewTable
from echostill.curation.service.data.state import State
from echostill.curation.service.http import (
    routes_coresets,
    routes_health,
    routes_holdings,
    routes_images,
    routes_jobs,
    routes_pins,
    routes_review,
    routes_sql,
    routes_withdrawals,
)
from echostill.curation.service.http.context import ServiceContext
from echostill.curation.service.http.openapi import PROBLEMS, document_problems_and_token
from echostill.curation.service.http.replies import problem_reply
from echostill.curation.service.http.security import Meters, SecurityMiddleware
from echostill.curation.service.jobs.queue import Jobs
from echostill.curation.service.jobs.withdrawals import Withdrawals
from echostill.curation.service.problems import Problem, from_error
from echostill.curation.service.sql.workers import WORKERS as SQL_WORKERS
from echostill.curation.service.sql.workers import SqlPool
from echostill.platform.errors import EchostillError
from echostill.platform.tables.fingerprint import code_version

Lifespan = Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]
ROUTES = (
    routes_health,
    routes_coresets,
    routes_holdings,
    routes_jobs,
    routes_images,
    routes_pins,
    routes_review,
    routes_sql,
    routes_withdrawals,
)
ASKED_MOST = (routes_images, routes_coresets)
EXPLORER = Path(__file__).parents[1] / "explorer"
THREADS = 8  # more would only wait for the same cores
SQL_THREADS = 4  # two run queries, two wait for a worker; further queries wait outside
NO_EXPLORER = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>echostill</title>"
    "<p>The coreset service is running. This installation has no explorer; the API is at /v1."
)
ABOUT = (
    "Pick coresets of an ultrasound pool, find out why an image is in one, and search for similar "
    "images. Every request except the health checks requires `Authorization: Bearer TOKEN`. Errors "
    "are `application/problem+json`. docs/api.md describes everything with examples."
)


@dataclass(frozen=True)
class Options:
    """How the service is run.

    Attributes:
        store: folder or URI.
        token: the bearer token.
        hosts: names accepted in Host headers, besides those of the loopback.
        folder: of derived files; None for the default.
        address: of a Ray cluster that picks; None to pick in a process on this machine.
        log: whether to write the access log.
        key: the user's key, under which patients and groups are withdrawn.
    """

    store: str
    token: str
    hosts: Sequence[str] = ()
    folder: str | None = None
    address: str | None = None
    log: bool = True
    key: bytes | None = field(default=None, repr=False)


def create_app(options: Options) -> SecurityMiddleware:
    """Build the application for a store; its work begins with its lifespan.

    Raises:
        UsageError: The store has no pool.
    """
    state = State(options.store, options.folder)
    context = ServiceContext(
        state=state,
        finder=SampleFinder(),
        review=ReviewTable(state.store),
        sql=SqlPool(),
        teacher=TeacherFeatures(state),
        meters=Meters(),
        withdrawals=Withdrawals(state.store, options.key, state.refresh),
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        await anyio.to_thread.run_sync(state.start)
        context.sql_limiter = anyio.CapacityLimiter(SQL_THREADS)
        context.stream_limiter = anyio.CapacityLimiter(SQL_WORKERS)
        context.jobs = Jobs(state.store, options.address, state.refresh)
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, context.sql.warm)
            yield
        await anyio.to_thread.run_sync(context.close)

    api = create_api(lifespan)
    api.state.context = context
    return SecurityMiddleware(api, options.token, options.hosts, context.meters, log=options.log)


def create_api(lifespan: Lifespan | None = None) -> FastAPI:
    """Build all routes; to answer, they need a ``ServiceContext`` as ``state.context``."""
    api = FastAPI(
        title="echostill coreset service",
        version=code_version(),
        description=ABOUT,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # its pages load scripts from a CDN
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        responses=PROBLEMS,
    )
    _add_error_handlers(api)
    # Each request is compared with one route after the other: those asked most come first.
    for module in sorted(ROUTES, key=lambda module: module not in ASKED_MOST):
        api.include_router(module.router)
    _add_explorer(api)
    declared = [route for module in ROUTES for route in module.router.routes]
    paths = [route.path for route in declared if isinstance(route, APIRoute)]
    document_problems_and_token(api, paths)
    return api


def _add_error_handlers(api: FastAPI) -> None:
    @api.exception_handler(Problem)
    async def on_problem(request: Request, problem: Problem) -> Response:
        return problem_reply(problem)

    @api.exception_handler(EchostillError)
    async def on_error(request: Request, error: EchostillError) -> Response:
        return problem_reply(from_error(error))

    @api.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        errors = [
            {"where": ".".join(str(part) for part in item["loc"][1:]), "message": item["msg"]}
            for item in error.errors()
        ]
        detail = "; ".join(f"{item['where']}: {item['message']}" for item in errors[:5])
        return problem_reply(Problem(422, "invalid", detail, more={"errors": errors[:100]}))

    @api.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        kinds = {404: "not-found", 405: "method-not-allowed", 400: "bad-request"}
        details = {
            404: "this path does not exist: GET /v1/openapi.json lists all paths.",
            405: "this path does not support this method: see GET /v1/openapi.json.",
        }
        headers = dict(error.headers or {})
        kind = kinds.get(error.status_code, "failed")
        detail = details.get(error.status_code, str(error.detail))
        return problem_reply(Problem(error.status_code, kind, detail, headers=headers))

    @api.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> Response:
        return problem_reply(Problem(500, "failed", "internal error: see the service's log."))


def _add_explorer(api: FastAPI) -> None:
    """Serve the built explorer, if this installation has it."""

    @api.get("/", include_in_schema=False)
    def page() -> Response:
        index = EXPLORER / "index.html"
        if not index.is_file():
            return HTMLResponse(NO_EXPLORER)
        return FileResponse(index, headers={"Cache-Control": "no-cache"})

    @api.get("/assets/{name:path}", include_in_schema=False)
    def asset(name: str) -> Response:
        known = _assets()
        if name not in known:
            raise Problem(404, "not-found", "no such file.")
        return FileResponse(known[name], headers={"Cache-Control": "no-cache"})


def _assets() -> dict[str, Path]:
    """The explorer's files by name; no other file can be requested."""
    folder = EXPLORER / "assets"
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {path.relative_to(folder).as_posix(): path for path in files}
