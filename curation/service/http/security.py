"""Around every request: token, Host header and size limits before it, headers and log after it."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from echostill.curation.service.problems import MEDIA_TYPE, Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ACCESS = logging.getLogger("echostill.access")
OPEN_PATHS = ("/healthz", "/readyz")
EXPLORER_PATHS = ("/", "/favicon.ico")
EXPLORER_PREFIX = "/assets/"
LOOPBACK = ("127.0.0.1", "localhost", "::1")

BODY_BYTES = 2**20
BODY_BYTES_AT = {"/v1/neighbours": 32 * 2**20, "/v1/sql": 256 * 2**10}
BODY_SECONDS = 30.0
PATH_BYTES = 2048
QUERY_BYTES = 16 * 2**10

API_POLICY = "default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' blob: data:; font-src 'self'; connect-src 'self'; worker-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)


class Meters:
    """Metrics for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self.requests = Counter(
            "echostill_requests", "Requests answered.", labels, registry=self.registry
        )
        self.seconds = Histogram(
            "echostill_request_seconds",
            "Seconds until the last byte.",
            ["route"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
            registry=self.registry,
        )
        self.running = Gauge(
            "echostill_requests_running", "Requests being answered.", registry=self.registry
        )
        self.images = Gauge("echostill_images", "Images in the pool.", registry=self.registry)
        self.ready = Gauge(
            "echostill_ready", "1 when everything can be answered.", registry=self.registry
        )
        self.jobs = Gauge("echostill_jobs", "Picks by state.", ["state"], registry=self.registry)


@dataclass
class _Exchange:
    """One request and its answer, as far as it is sent."""

    method: str
    started: float
    status: int = 0
    sent: int = 0
    open: bool = False


class SecurityMiddleware:
    """Checks requests before another ASGI application sees them."""

    def __init__(
        self, app: App, token: str, hosts: Iterable[str], meters: Meters, *, log: bool = True
    ) -> None:
        """Wrap an application.

        Args:
            app: the ASGI application that answers.
            token: the bearer token.
            hosts: names that the Host header may have, without ports.
            meters: metrics to update.
            log: whether to write the access log.
        """
        self._app = app
        self._token = token.encode()
        self._hosts = {host.lower().strip("[]") for host in (*LOOPBACK, *hosts)}
        self._meters = meters
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        exchange = _Exchange(scope["method"], time.perf_counter())
        page = _is_page(scope["path"])

        async def out(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status, exchange.open = message["status"], True
                message["headers"] = [*message.get("headers", []), *_headers(page)]
            elif message["type"] == "http.response.body":
                exchange.sent += len(message.get("body", b""))
            await send(message)

        self._meters.running.inc()
        try:
            self._check(scope)
            await self._app(scope, await self._limited(scope, receive), out)
        except Problem as problem:
            if exchange.open:
                raise
            await respond(problem, out)
        finally:
            self._meters.running.dec()
            self._note(scope, exchange)

    def _check(self, scope: Scope) -> None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or _host_name(hosts[0]) not in self._hosts:
            raise Problem(
                400,
                "bad-host",
                "the Host header is not a name of this service: start it with --allowed-host NAME.",
            )
        if (
            len(scope.get("raw_path") or b"") > PATH_BYTES
            or len(scope["query_string"]) > QUERY_BYTES
        ):
            raise Problem(414, "too-large", "the URL is too long.")
        path = scope["path"]
        if path in OPEN_PATHS or (_is_page(path) and scope["method"] in ("GET", "HEAD")):
            return
        given = headers.get(b"authorization", [])
        if len(given) != 1 or not self._is_token(given[0]):
            raise Problem(
                401,
                "unauthorised",
                "send the service's token: Authorization: Bearer TOKEN. It was printed at the "
                "first start and is stored in the token file beside the store.",
                headers={"WWW-Authenticate": 'Bearer realm="echostill"'},
            )

    def _is_token(self, header: bytes) -> bool:
        scheme, _, token = header.partition(b" ")
        same = hmac.compare_digest(token.strip(), self._token)
        return scheme.lower() == b"bearer" and same

    async def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Read the body up to its limit, then replay it to the application."""
        limit = BODY_BYTES_AT.get(scope["path"], BODY_BYTES)
        for name, value in scope["headers"]:
            if name.lower() == b"content-length" and (not value.isdigit() or int(value) > limit):
                raise Problem(
                    413, "too-large", f"the body is too large: at most {limit} bytes are accepted."
                )
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        break
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise Problem(
                            413,
                            "too-large",
                            f"the body is too large: at most {limit} bytes are accepted.",
                        )
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise Problem(
                408, "too-slow", f"the body did not arrive within {BODY_SECONDS:.0f} seconds."
            ) from None
        waiting = True

        async def replay() -> Message:
            nonlocal waiting
            if waiting:
                waiting = False
                return {"type": "http.request", "body": bytes(body), "more_body": False}
            return await receive()

        return replay

    def _note(self, scope: Scope, exchange: _Exchange) -> None:
        """Count and log by route: a URL contains ids, a route does not."""
        seconds = time.perf_counter() - exchange.started
        route = getattr(scope.get("route"), "path", None) or "other"
        known = ("GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS")
        method = exchange.method if exchange.method in known else "other"
        self._meters.requests.labels(method, route, str(exchange.status)).inc()
        self._meters.seconds.labels(route).observe(seconds)
        if self._log:
            line = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "method": method,
                "route": route,
                "status": exchange.status,
                "ms": round(seconds * 1000, 2),
                "bytes": exchange.sent,
            }
            ACCESS.info("%s", json.dumps(line))


async def respond(problem: Problem, send: Send) -> None:
    """Send a problem."""
    body = json.dumps(problem.as_dict()).encode()
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in problem.headers.items()),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_page(path: str) -> bool:
    return path in EXPLORER_PATHS or path.startswith(EXPLORER_PREFIX)


def _headers(page: bool) -> list[tuple[bytes, bytes]]:
    policy = PAGE_POLICY if page else API_POLICY
    return [*HEADERS, (b"content-security-policy", policy.encode())]


def _host_name(header: bytes) -> str:
    """The name in a Host header, without its port."""
    text = header.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text
