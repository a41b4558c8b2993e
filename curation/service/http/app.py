"""The application: routes that call plain functions, and nothing else."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse

from echostill.curation.service.answers.uploads import TeacherFeatures
from echostill.curation.service.data.pages import Finder
from echostill.curation.service.data.state import State
from echostill.curation.service.http import routes_coresets, routes_images, routes_sql
from echostill.curation.service.http.replies import Desk, json_reply, problem_reply
from echostill.curation.service.http.security import Edge, Meters
from echostill.curation.service.jobs.queue import Jobs
from echostill.curation.service.problems import MEDIA_TYPE, Problem, from_error
from echostill.curation.service.sql.workers import WORKERS as SQL_WORKERS
from echostill.curation.service.sql.workers import SqlPool
from echostill.platform.errors import EchostillError
from echostill.platform.tables.fingerprint import code_version

EXPLORER = Path(__file__).parents[1] / "explorer"
THREADS = 8  # more would only wait for the same cores
SQL_THREADS = 4  # two run, two wait for a worker; the others wait here
NO_EXPLORER = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>echostill</title>"
    "<p>The coreset service runs. This installation has no explorer; the API is at /v1."
)
ABOUT = (
    "Pick coresets of an ultrasound pool, ask why an image is in one, and look at its neighbours. "
    "Every request but the health checks wants `Authorization: Bearer TOKEN`. Errors are "
    "`application/problem+json`. docs/api.md has all of it with examples."
)


@dataclass(frozen=True)
class Options:
    """How the service is run.

    Attributes:
        store: folder or URI.
        token: what callers send.
        hosts: names in Host headers besides those of the loopback.
        folder: of derived files; None for the usual place.
        address: of a Ray cluster that picks; None to pick in a process beside the service.
        log: whether to write the access log.
    """

    store: str
    token: str
    hosts: Sequence[str] = ()
    folder: str | None = None
    address: str | None = None
    log: bool = True


def create_app(options: Options) -> Edge:
    """Build the application; its work begins with its lifespan.

    Raises:
        UsageError: The store has no pool.
    """
    state = State(options.store, options.folder)
    meters = Meters()
    desk = Desk(
        state=state,
        finder=Finder(),
        sql=SqlPool(),
        teacher=TeacherFeatures(state),
        meters=meters,
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        await anyio.to_thread.run_sync(state.start)
        desk.sql_limiter = anyio.CapacityLimiter(SQL_THREADS)
        desk.stream_limiter = anyio.CapacityLimiter(SQL_WORKERS)
        desk.jobs = Jobs(state.store, options.address, state.refresh)
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, desk.sql.warm)
            yield
        await anyio.to_thread.run_sync(desk.close)

    app = FastAPI(
        title="echostill coreset service",
        version=code_version(),
        description=ABOUT,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # its pages load scripts from a CDN
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        responses={
            401: {"description": "Without or with a wrong token.", "content": {MEDIA_TYPE: {}}},
            "default": {"description": "A problem.", "content": {MEDIA_TYPE: {}}},
        },
    )
    app.state.desk = desk
    _add_errors(app)
    _add_health(app, desk)
    for module in (routes_coresets, routes_images, routes_sql):
        app.include_router(module.router)
    _add_explorer(app)
    _describe_token(app)
    return Edge(app, options.token, options.hosts, meters, log=options.log)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def on_problem(request: Request, problem: Problem) -> Response:
        return problem_reply(problem)

    @app.exception_handler(EchostillError)
    async def on_error(request: Request, error: EchostillError) -> Response:
        return problem_reply(from_error(error))

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        errors = [
            {"where": ".".join(str(part) for part in item["loc"][1:]), "message": item["msg"]}
            for item in error.errors()
        ]
        detail = "; ".join(f"{item['where']}: {item['message']}" for item in errors[:5])
        return problem_reply(Problem(422, "invalid", detail, more={"errors": errors[:100]}))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        kinds = {404: "not-found", 405: "method-not-allowed", 400: "bad-request"}
        headers = dict(error.headers or {})
        kind = kinds.get(error.status_code, "failed")
        return problem_reply(Problem(error.status_code, kind, str(error.detail), headers=headers))

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> Response:
        return problem_reply(Problem(500, "failed", "the service failed; its log says where."))


def _add_health(app: FastAPI, desk: Desk) -> None:
    @app.get("/healthz", tags=["health"])
    def healthz() -> Response:
        """Whether the process answers."""
        return json_reply({"status": "ok"})

    @app.get("/readyz", tags=["health"])
    def readyz() -> Response:
        """Whether everything can be answered."""
        if desk.state.ready:
            return json_reply({"status": "ok"})
        index = desk.state.preparation.as_dict()
        return json_reply({"status": "starting", "index": index}, status=503)

    @app.get("/metrics", tags=["health"], responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """Numbers for Prometheus."""
        desk.measure()
        return Response(generate_latest(desk.meters.registry), media_type="text/plain")


def _add_explorer(app: FastAPI) -> None:
    """Serve the built explorer, where this installation has it."""

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        index = EXPLORER / "index.html"
        if not index.is_file():
            return HTMLResponse(NO_EXPLORER)
        return FileResponse(index, headers={"Cache-Control": "no-cache"})

    @app.get("/assets/{name:path}", include_in_schema=False)
    def asset(name: str) -> Response:
        known = _assets()
        if name not in known:
            raise Problem(404, "not-found", "no such file.")
        return FileResponse(known[name], headers={"Cache-Control": "no-cache"})


def _assets() -> dict[str, Path]:
    """The explorer's files by name: what is not among them cannot be asked for."""
    folder = EXPLORER / "assets"
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {path.relative_to(folder).as_posix(): path for path in files}


def _describe_token(app: FastAPI) -> None:
    """Say in the OpenAPI document that all but the health checks want the token."""
    made = app.openapi

    def openapi() -> dict[str, object]:
        document = made()
        document.setdefault("components", {})["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"}
        }
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in ("/healthz", "/readyz") else [{"token": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
