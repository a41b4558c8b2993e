"""The connection of a client: HTTP requests whose problems become the errors of the tool."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

from echostill.curation.service.problems import error_of
from echostill.platform.errors import EchostillError, UsageError

TOKEN_VARIABLE = "ECHOSTILL_TOKEN"
TIMEOUT = 90.0  # seconds; a query may take sixty


class Connection:
    """Sends requests with the service's token.

    Every method raises a UsageError if the request was wrong, and an EchostillError if the service
    could not answer.
    """

    def __init__(self, url: str, token: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(
                f"'{url}' is not a valid URL: expected http://HOST:PORT or https://..."
            )
        self.http = httpx2.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT,
            trust_env=False,  # no proxy sees the token or the images
        )

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Return a JSON answer."""
        found: dict[str, Any] = self.request("GET", path, query).json()
        return found

    def send(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Send a JSON body and return a JSON answer."""
        found: dict[str, Any] = self.request(method, path, json=body).json()
        return found

    def request(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, **options: Any
    ) -> httpx2.Response:
        """Send a request; options are those of httpx."""
        try:
            answer = self.http.request(method, path, params=_given(query), **options)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from None
        _check(answer)
        return answer

    @contextmanager
    def stream(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, **options: Any
    ) -> Iterator[Iterator[bytes]]:
        """Send a request and give the pieces of its answer; options are those of httpx."""
        try:
            with self.http.stream(method, path, params=_given(query), **options) as answer:
                if answer.status_code >= 400:
                    answer.read()
                _check(answer)
                yield answer.iter_bytes()
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> EchostillError:
        return EchostillError(
            f"no service answers at {self.http.base_url}: {error}. Start one with `echostill "
            "serve STORE`, or correct the URL."
        )


def read_token(token: str | None, token_file: str | None) -> str:
    """Return a service's token: the given one, that of a file, or of the environment.

    Raises:
        UsageError: There is none.
    """
    if token is None and token_file is not None:
        if not Path(token_file).is_file():
            raise UsageError(f"no token file '{token_file}'.")
        token = Path(token_file).read_text().strip()
    token = token or os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise UsageError(
            "the service requires a token: give token, token_file or the variable "
            f"{TOKEN_VARIABLE}. It was printed at the service's first start, and is stored beside "
            "the store."
        )
    return token


def part(text: str) -> str:
    """Quote a name as one part of a path."""
    return quote(text, safe="")


def _check(answer: httpx2.Response) -> None:
    if answer.status_code < 400:
        return
    try:
        detail = str(answer.json()["detail"])
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        detail = f"the service answered with status {answer.status_code}"
    raise error_of(answer.status_code, detail)


def _given(query: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (query or {}).items() if value is not None}
