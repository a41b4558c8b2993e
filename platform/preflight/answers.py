"""Whether something outside answers in time."""

import http.client
import queue
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

SECONDS = 3.0  # that a check waits for an answer
MUCH = 4096  # bytes of an answer that are read

Result = TypeVar("Result")


class NoAnswerError(Exception):
    """Nothing answered; the text says why, as the end of a sentence without its full stop."""


SILENT = f"no answer within {SECONDS:g} seconds"


@dataclass(frozen=True)
class Reply:
    """What an HTTP server answered.

    Attributes:
        status: HTTP status; 0 where its TLS certificate is not trusted here.
        body: Beginning of the body.
    """

    status: int
    body: bytes = b""


def within(call: Callable[[], Result], seconds: float = SECONDS) -> Result:
    """Return ``call()``, or give up on it; what does not end is left behind in its thread.

    Raises:
        NoAnswerError: It took longer.
        Exception: Whatever the call raises.
    """
    results: queue.Queue[tuple[bool, Any]] = queue.Queue()

    def run() -> None:
        try:
            results.put((True, call()))
        except BaseException as error:
            results.put((False, error))

    threading.Thread(target=run, daemon=True, name="echostill-preflight").start()
    try:
        worked, value = results.get(timeout=seconds)
    except queue.Empty:
        raise NoAnswerError(SILENT) from None
    if not worked:
        raise value
    result: Result = value
    return result


def ask(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    proxies: bool = True,
) -> Reply:
    """Send one HTTP request, without retries; any status is an answer, a redirection too.

    Args:
        url: An http or https URL.
        method: HTTP method.
        headers: Headers of the request.
        proxies: Whether to go through the proxies of the environment.

    Raises:
        NoAnswerError: Nobody listens, or the answer is no HTTP or takes too long.
    """
    handlers: list[Any] = [_NoRedirection]
    if not proxies:
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    request = urllib.request.Request(url, method=method, headers=dict(headers or {}))

    def send() -> Reply:
        with opener.open(request, timeout=SECONDS) as reply:
            return Reply(reply.status, reply.read(MUCH))

    try:
        return within(send)
    except urllib.error.HTTPError as error:
        return Reply(error.code)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            return Reply(0)
        raise NoAnswerError(_words(reason)) from None


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        """Follow no redirection: whoever redirects has answered."""


def _words(reason: object) -> str:
    if isinstance(reason, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(reason, TimeoutError):
        return SILENT
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return " ".join(str(reason).split()) or type(reason).__name__
