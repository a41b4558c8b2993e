"""A client of the coreset service: what it answers, as Arrow tables and plain values.

>>> service = connect("http://127.0.0.1:8420", token="...")  # doctest: +SKIP
>>> service.sql("select organ, count(*) from pool group by organ").to_pandas()  # doctest: +SKIP
"""

import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq

from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.tables.atomic import atomic_write

ARROW = "application/vnd.apache.arrow.stream"
TOKEN_VARIABLE = "ECHOSTILL_TOKEN"
TIMEOUT = 90.0  # seconds; a query may take sixty
POLL = 1.0  # seconds between looks at a job
PAGE = 500
SUFFIXES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
}
FINISHED = ("done", "failed", "cancelled")


def connect(url: str, token: str | None = None, *, token_file: str | None = None) -> "Client":
    """Connect to a service.

    Args:
        url: such as ``http://127.0.0.1:8420``.
        token: its token; default the variable ECHOSTILL_TOKEN.
        token_file: a file that holds the token, in place of it.

    Raises:
        UsageError: No token is given, or the service refuses it.
        EchostillError: No service answers.
    """
    if token is None and token_file is not None:
        if not Path(token_file).is_file():
            raise UsageError(f"no token file '{token_file}'.")
        token = Path(token_file).read_text().strip()
    token = token or os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise UsageError(
            f"the service wants a token: give token, token_file or the variable {TOKEN_VARIABLE}. "
            "It was printed at the service's first start, and lies beside the store."
        )
    client = Client(url, token)
    client.pool()
    return client


class Client:
    """Talks to a service. A ``with`` block closes it.

    Every method raises a UsageError where the request was wrong and an EchostillError where the
    service could not answer, in the words that the command line prints.
    """

    def __init__(self, url: str, token: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"'{url}' is no address: expected http://HOST:PORT or https://...")
        self._http = httpx2.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT,
            trust_env=False,  # no proxy sees the token or the images
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def pool(self) -> dict[str, Any]:
        """What the store holds: numbers of images, organs, devices, coresets."""
        return self._get("/v1/pool")

    def coresets(self) -> list[dict[str, Any]]:
        """The coresets, newest first."""
        return list(self._get("/v1/coresets")["items"])

    def coreset(self, name: str) -> dict[str, Any]:
        """How a coreset was picked, and its files."""
        return self._get(f"/v1/coresets/{_part(name)}")

    def stats(self, name: str) -> dict[str, Any]:
        """Shares of organs and devices, clusters and histograms of a coreset."""
        return self._get(f"/v1/coresets/{_part(name)}/stats")

    def samples(self, name: str, **filters: Any) -> Iterator[dict[str, Any]]:
        """Iterate over a coreset's samples, page after page.

        Args:
            name: of the coreset.
            **filters: as in the interface: ``selected="any"``, ``organ="liver"``,
                ``cluster=[3, 4]``, ``min="distance:0.2"``, ``sort="-dual_rank"``, ...
        """
        query = {"limit": PAGE, **filters}
        cursor: str | None = None
        while True:
            following = {"cursor": cursor} if cursor else {}
            page = self._get(f"/v1/coresets/{_part(name)}/samples", **query, **following)
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def table(self, name: str, **filters: Any) -> pa.Table:
        """Return a coreset's chosen rows (``selected="any"``: all) as one Arrow table."""
        path = f"/v1/coresets/{_part(name)}/export"
        answer = self._send("GET", path, params={"format": "parquet", **filters})
        return pq.read_table(io.BytesIO(answer.content))

    def export(self, name: str, path: str, **filters: Any) -> int:
        """Write a coreset to a ``.parquet``, ``.csv`` or ``.jsonl`` file; returns its bytes."""
        kind = export_format(path)
        target = Path(path)
        size = 0
        query = {"format": kind, **filters}
        with atomic_write(target) as partial:
            answer = self._stream(f"/v1/coresets/{_part(name)}/export", query)
            with answer as pieces, partial.open("wb") as file:
                for piece in pieces.iter_bytes():
                    size += file.write(piece)
        return size

    def compare(self, a: str, b: str, *, limit: int = 100) -> dict[str, Any]:
        """Two coresets side by side: overlap, what entered, what left, what shifted."""
        return self._get("/v1/compare", a=a, b=b, limit=limit)

    def image(self, image_id: str, *, coreset: str | None = None) -> dict[str, Any]:
        """Everything about one image: origin, scores, ranks, and why it is chosen or not."""
        return self._get(f"/v1/images/{_part(image_id)}", coreset=coreset)

    def why(self, image_id: str, *, coreset: str | None = None) -> str:
        """Say in words why an image is chosen or not."""
        return str(self.image(image_id, coreset=coreset)["why"]["text"])

    def find(self, text: str, *, limit: int = 20) -> list[dict[str, Any]]:
        """Find images by the beginning of an id, or by text in a source."""
        return list(self._get("/v1/images", q=text, limit=limit)["items"])

    def thumbnail(self, image_id: str, *, size: int = 160, format: str = "jpeg") -> bytes:
        """The staged picture of an image as JPEG or PNG."""
        path = f"/v1/images/{_part(image_id)}/thumbnail"
        return self._send("GET", path, params={"size": size, "format": format}).content

    def neighbours(self, image: str | Path, k: int = 10, **query: Any) -> list[dict[str, Any]]:
        """Find the nearest images.

        Args:
            image: an image id, or the path of an image file that is sent.
            k: how many.
            **query: ``coreset``, ``selected`` and, for an id, ``same_group``.
        """
        file = Path(image)
        kind = SUFFIXES.get(file.suffix.lower())
        if kind is None:
            path = f"/v1/images/{_part(str(image))}/neighbours"
            return list(self._get(path, k=k, **query)["items"])
        if not file.is_file():
            raise UsageError(f"no image file '{image}'.")
        answer = self._send(
            "POST",
            "/v1/neighbours",
            params=_given({"k": k, **query}),
            content=file.read_bytes(),
            headers={"Content-Type": kind},
        )
        return list(answer.json()["items"])

    def clusters(self, *, coreset: str | None = None, sort: str = "cluster") -> pa.Table:
        """The clusters of a coreset, as a table."""
        found = self._get("/v1/clusters", coreset=coreset, sort=sort)
        items = list(found["items"])
        while found["next"]:
            found = self._get("/v1/clusters", coreset=coreset, sort=sort, cursor=found["next"])
            items += found["items"]
        return pa.Table.from_pylist(items)

    def cluster(self, number: int, *, coreset: str | None = None) -> dict[str, Any]:
        """One cluster and its first members."""
        return self._get(f"/v1/clusters/{number}", coreset=coreset)

    def map(self, *, coreset: str | None = None, sample: int | None = None) -> pa.Table:
        """A place in the plane for every scored image."""
        query = _given({"coreset": coreset, "sample": sample})
        answer = self._send("GET", "/v1/map", params=query)
        return pa.ipc.open_stream(answer.content).read_all()

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] = (),
        *,
        coreset: str | None = None,
        limit: int = 1_000_000,
        timeout: float = 60,
        pandas: bool = False,
    ) -> Any:
        """Run one SELECT over the views.

        Args:
            query: over ``pool``, ``scores``, ``coreset``, ``samples``, ``coresets``, ...
            parameters: values of its ``?``.
            coreset: the one that the view ``coreset`` shows.
            limit: rows at most; what is beyond is cut off, and the schema's metadata says so
                (``truncated``).
            timeout: seconds at most, up to 60.
            pandas: return a data frame in place of an Arrow table.
        """
        body = {
            "sql": query,
            "parameters": list(parameters),
            "coreset": coreset,
            "limit": limit,
            "timeout": timeout,
        }
        answer = self._send("POST", "/v1/sql", json=body, headers={"Accept": ARROW})
        table = read_result(answer.content)
        return table.to_pandas() if pandas else table

    def pick(
        self,
        name: str,
        *,
        wait: bool = True,
        progress: Callable[[str, float], None] | None = None,
        **keys: Any,
    ) -> dict[str, Any]:
        """Pick a coreset in the background of the service.

        Args:
            name: of the coreset.
            wait: until it is done; else return the job at once.
            progress: told stage and fraction while waiting.
            **keys: of `echostill select`: ``budget``, ``method``, ``seed``, ...

        Returns:
            The job.

        Raises:
            EchostillError: The job failed or was cancelled.
        """
        job: dict[str, Any] = self._send("POST", "/v1/coresets", json={"name": name, **keys}).json()
        while wait and job["state"] not in FINISHED:
            time.sleep(POLL)
            job = self.job(job["id"])
            if progress is not None:
                progress(job["stage"], job["fraction"])
        if wait and job["state"] != "done":
            raise EchostillError(f"picking '{name}' {job['state']}: {job['message']}")
        return job

    def jobs(self) -> list[dict[str, Any]]:
        """The latest picks, newest first."""
        return list(self._get("/v1/jobs")["items"])

    def job(self, job_id: str) -> dict[str, Any]:
        """One pick and how far it is."""
        return self._get(f"/v1/jobs/{_part(job_id)}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a pick."""
        found: dict[str, Any] = self._send("DELETE", f"/v1/jobs/{_part(job_id)}").json()
        return found

    def pins(self, *, history: bool = False) -> list[dict[str, Any]]:
        """Pins and bans, newest first."""
        return list(self._get("/v1/pins", history=history)["items"])

    def pin(self, images: Sequence[str], *, author: str, reason: str) -> dict[str, Any]:
        """Have the next selections take images in any case."""
        return self._act("pin", images, author, reason)

    def ban(self, images: Sequence[str], *, author: str, reason: str) -> dict[str, Any]:
        """Have the next selections leave images out."""
        return self._act("ban", images, author, reason)

    def unpin(self, pin_id: str, *, author: str, reason: str) -> dict[str, Any]:
        """Take a pin or ban back."""
        body = {"author": author, "reason": reason}
        answer = self._send("DELETE", f"/v1/pins/{_part(pin_id)}", json=body)
        found: dict[str, Any] = answer.json()
        return found

    def _act(self, action: str, images: Sequence[str], author: str, reason: str) -> dict[str, Any]:
        body = {"action": action, "images": list(images), "author": author, "reason": reason}
        found: dict[str, Any] = self._send("POST", "/v1/pins", json=body).json()
        return found

    def _get(self, path: str, **query: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._send("GET", path, params=_given(query)).json()
        return found

    def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from None
        _raise_for(answer)
        return answer

    def _stream(self, path: str, query: Mapping[str, Any]) -> "_Stream":
        return _Stream(self, self._http.stream("GET", path, params=dict(query)))

    def _unreachable(self, error: Exception) -> EchostillError:
        return EchostillError(
            f"no service answers at {self._http.base_url}: {error}. Start one with `echostill "
            "serve STORE`, or correct the address."
        )


class _Stream:
    """A streamed answer whose errors are told as those of other answers."""

    def __init__(self, client: Client, context: Any) -> None:
        self._client, self._context = client, context

    def __enter__(self) -> httpx2.Response:
        try:
            answer: httpx2.Response = self._context.__enter__()
        except httpx2.HTTPError as error:
            raise self._client._unreachable(error) from None
        if answer.status_code >= 400:
            answer.read()
            _raise_for(answer)
        return answer

    def __exit__(self, *details: Any) -> None:
        self._context.__exit__(*details)


def export_format(path: str) -> str:
    """Return the format that a file's name asks for.

    Raises:
        UsageError: Another ending than .parquet, .csv or .jsonl.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in ("parquet", "csv", "jsonl"):
        raise UsageError(f"'{path}': the name has to end in .parquet, .csv or .jsonl.")
    return kind


def read_result(data: bytes) -> pa.Table:
    """Read the Arrow stream of a query; its metadata says whether rows were cut off.

    Raises:
        EchostillError: The query failed while it answered.
    """
    batches, truncated = [], b"false"
    with pa.ipc.open_stream(data) as reader:
        schema = reader.schema
        try:
            while True:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
                if metadata is not None and b"error" in metadata:
                    raise EchostillError(metadata[b"error"].decode())
                truncated = (metadata or {}).get(b"truncated", truncated)
                batches.append(batch)
        except StopIteration:
            pass
    table = pa.Table.from_batches(batches, schema)
    return table.replace_schema_metadata({"truncated": truncated})


def _raise_for(answer: httpx2.Response) -> None:
    if answer.status_code < 400:
        return
    try:
        detail = str(answer.json()["detail"])
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        detail = f"the service answered {answer.status_code}"
    wrong = answer.status_code < 500 and answer.status_code not in (408, 429)
    raise UsageError(detail) if wrong else EchostillError(detail)


def _given(query: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in query.items() if value is not None}


def _part(text: str) -> str:
    return quote(text, safe="")
