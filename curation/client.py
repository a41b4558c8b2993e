"""A client of the coreset service: its answers as Arrow tables and plain values.

>>> service = connect("http://127.0.0.1:8420", token="...")  # doctest: +SKIP
>>> service.sql("select organ, count(*) from pool group by organ").to_pandas()  # doctest: +SKIP
"""

import io
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, Unpack

import pyarrow as pa
import pyarrow.parquet as pq

from echostill.curation.answer_files import EVERY_ROW, check_answer_file, write_answer
from echostill.curation.connection import Connection, part, read_token
from echostill.curation.housekeeping import POLL_SECONDS, HousekeepingCalls
from echostill.curation.questions import (
    ExportFilters,
    SampleFilters,
    check_filters,
    export_format,
    image_file,
    read_result,
    write_export,
)
from echostill.platform.errors import EchostillError

ARROW = "application/vnd.apache.arrow.stream"
PAGE = 500
QUERY_SECONDS = 60.0  # the service's limit
FINISHED = ("done", "failed", "cancelled")


def connect(url: str, token: str | None = None, *, token_file: str | None = None) -> "Client":
    """Connect to a service.

    Args:
        url: such as ``http://127.0.0.1:8420``.
        token: its token; default the variable ECHOSTILL_TOKEN.
        token_file: a file with the token, instead of it.

    Raises:
        UsageError: No token is given, or the service rejects it.
        EchostillError: No service answers.
    """
    client = Client(url, read_token(token, token_file))
    client.pool()
    return client


class Client(HousekeepingCalls):
    """Asks a running service (``CoresetQuestions``), and has it pick coresets.

    A ``with`` block closes it. Every method raises a UsageError if the request was wrong, and an
    EchostillError if the service could not answer, with the messages of the command line.
    """

    def __init__(self, url: str, token: str) -> None:
        self._service = Connection(url, token)

    def __enter__(self) -> Self:
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
        self._service.close()

    # The pool and its coresets

    def pool(self) -> dict[str, Any]:
        """Return what the store contains: numbers of images, organs, devices, coresets."""
        return self._service.get("/v1/pool")

    def coresets(self) -> list[dict[str, Any]]:
        """Return the coresets, newest first."""
        return list(self._service.get("/v1/coresets")["items"])

    def coreset(self, name: str) -> dict[str, Any]:
        """Return how a coreset was picked, and its files."""
        return self._service.get(f"/v1/coresets/{part(name)}")

    def stats(self, name: str) -> dict[str, Any]:
        """Return shares of organs and devices, clusters and histograms of a coreset."""
        return self._service.get(f"/v1/coresets/{part(name)}/stats")

    def samples(self, name: str, **filters: Unpack[SampleFilters]) -> Iterator[dict[str, Any]]:
        """Iterate over a coreset's samples, page by page; filters as in ``CoresetQuestions``."""
        check_filters(filters, SampleFilters)
        return self._pages(f"/v1/coresets/{part(name)}/samples", {"limit": PAGE, **filters})

    def table(self, name: str, **filters: Unpack[ExportFilters]) -> pa.Table:
        """Return a coreset's selected rows (``selected="any"``: all) as one Arrow table."""
        check_filters(filters, ExportFilters)
        query = {"format": "parquet", **filters}
        answer = self._service.request("GET", f"/v1/coresets/{part(name)}/export", query)
        return pq.read_table(io.BytesIO(answer.content))

    def export(self, name: str, path: str, **filters: Unpack[ExportFilters]) -> int:
        """Write a coreset to a ``.parquet``, ``.csv`` or ``.jsonl`` file; return its bytes."""
        check_filters(filters, ExportFilters)
        query = {"format": export_format(path), **filters}
        with self._service.stream("GET", f"/v1/coresets/{part(name)}/export", query) as pieces:
            return write_export(path, pieces)

    def compare(self, a: str, b: str, *, limit: int = 100) -> dict[str, Any]:
        """Compare two coresets: overlap, what entered, what left, what shifted."""
        return self._service.get("/v1/compare", a=a, b=b, limit=limit)

    def clusters(self, *, coreset: str | None = None, sort: str = "cluster") -> pa.Table:
        """Return the clusters of a coreset as a table."""
        return pa.Table.from_pylist(
            list(self._pages("/v1/clusters", {"coreset": coreset, "sort": sort}))
        )

    def cluster(self, number: int, *, coreset: str | None = None) -> dict[str, Any]:
        """Return one cluster and its first members."""
        return self._service.get(f"/v1/clusters/{number}", coreset=coreset)

    # Images

    def image(self, image_id: str, *, coreset: str | None = None) -> dict[str, Any]:
        """Return everything about one image: origin, scores, ranks, why it is selected or not."""
        return self._service.get(f"/v1/images/{part(image_id)}", coreset=coreset)

    def why(self, image_id: str, *, coreset: str | None = None) -> str:
        """Say in words why an image is selected or not."""
        return str(self.image(image_id, coreset=coreset)["why"]["text"])

    def find(
        self, text: str, *, limit: int = 20, coreset: str | None = None
    ) -> list[dict[str, Any]]:
        """Find images by the beginning of an id, or by text in a source."""
        return list(self._service.get("/v1/images", q=text, limit=limit, coreset=coreset)["items"])

    def resolve(self, name: str) -> str:
        """Return the id of the one image that an id, its beginning, a source or file name means."""
        found = self._service.get("/v1/images", q=name, unique=True)["items"]
        return str(found[0]["image_id"])

    def look_up(
        self, *, rows: Sequence[int] = (), ids: Sequence[str] = (), coreset: str | None = None
    ) -> list[dict[str, Any]]:
        """Return samples by their rows in the map, then by ids, in the order given."""
        body = {"rows": list(rows), "ids": list(ids), "coreset": coreset}
        return list(self._service.send("POST", "/v1/images/lookup", body)["items"])

    def thumbnail(
        self, image_id: str, *, size: int = 160, format: Literal["jpeg", "png"] = "jpeg"
    ) -> bytes:
        """Return the staged picture of an image as JPEG or PNG."""
        path = f"/v1/images/{part(image_id)}/thumbnail"
        return self._service.request("GET", path, {"size": size, "format": format}).content

    def neighbours(
        self,
        image: str | Path,
        k: int = 10,
        *,
        coreset: str | None = None,
        selected: str = "any",
        same_group: bool = True,
    ) -> list[dict[str, Any]]:
        """Find the images nearest to one of the pool, or to an image file, which is sent."""
        query = {"k": k, "coreset": coreset, "selected": selected}
        file = image_file(image)
        if file is not None:
            data, media_type = file
            headers = {"Content-Type": media_type}
            answer = self._service.request(
                "POST", "/v1/neighbours", query, content=data, headers=headers
            )
            return list(answer.json()["items"])
        name = str(image)
        image_id = name if re.fullmatch("[0-9a-f]{32,}", name) else self.resolve(name)
        path = f"/v1/images/{part(image_id)}/neighbours"
        return list(self._service.get(path, **query, same_group=same_group)["items"])

    def map(self, *, coreset: str | None = None, sample: int | None = None) -> pa.Table:
        """Return coordinates, cluster and selection of every scored image."""
        answer = self._service.request("GET", "/v1/map", {"coreset": coreset, "sample": sample})
        return pa.ipc.open_stream(answer.content).read_all()

    # SQL

    def views(self) -> list[dict[str, Any]]:
        """Return the views that queries can read, with their columns."""
        return list(self._service.get("/v1/sql/views")["items"])

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] = (),
        *,
        coreset: str | None = None,
        limit: int = 1_000_000,
        timeout: float | None = None,
        pandas: bool = False,
    ) -> Any:
        """Run one SELECT over the views; arguments as in ``CoresetQuestions``."""
        body = _query(query, parameters, coreset, limit, timeout)
        headers = {"Accept": ARROW}
        answer = self._service.request("POST", "/v1/sql", json=body, headers=headers)
        table = read_result(answer.content)
        return table.to_pandas() if pandas else table

    def export_sql(
        self,
        query: str,
        path: str,
        parameters: Sequence[Any] = (),
        *,
        coreset: str | None = None,
        limit: int | None = None,
        timeout: float | None = None,
        overwrite: bool = False,
    ) -> int:
        """Write all rows of a query to a file; arguments as in ``CoresetQuestions``."""
        check_answer_file(path, overwrite=overwrite)
        body = _query(query, parameters, coreset, limit or EVERY_ROW, timeout)
        headers = {"Accept": ARROW}
        with self._service.stream("POST", "/v1/sql", json=body, headers=headers) as pieces:
            return write_answer(path, (piece for piece in pieces))

    # Pins and bans

    def pins(self, *, history: bool = False) -> list[dict[str, Any]]:
        """Return pins and bans, newest first; with ``history`` the removed ones too."""
        return list(self._service.get("/v1/pins", history=history)["items"])

    def pin(self, images: Sequence[str], *, author: str, reason: str) -> dict[str, Any]:
        """Have all later selections take images."""
        return self._add_pin("pin", images, author, reason)

    def ban(self, images: Sequence[str], *, author: str, reason: str) -> dict[str, Any]:
        """Have all later selections leave images out."""
        return self._add_pin("ban", images, author, reason)

    def unpin(self, pin_id: str, *, author: str, reason: str) -> dict[str, Any]:
        """Remove a pin or ban."""
        body = {"author": author, "reason": reason}
        return self._service.send("DELETE", f"/v1/pins/{part(pin_id)}", body)

    # Frames held back for review

    def review(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Iterate over the frames that de-identification held back, with the decisions on them.

        Args:
            **filters: lists of values of ``state`` (open, approved, rejected), ``reason``,
                ``organ``, ``device`` and ``group_id``; bounds ``least`` and ``most`` of the text
                score; ``sort``.
        """
        offset: int | None = 0
        while offset is not None:
            page = self._service.get("/v1/review", **filters, offset=offset, limit=PAGE)
            yield from page["items"]
            offset = page["next"]

    def review_picture(self, image_id: str) -> bytes:
        """Return a frame before and after cleaning, side by side, as PNG. It is identifiable."""
        return self._service.request("GET", f"/v1/review/{part(image_id)}/picture").content

    def decide(
        self,
        decision: Literal["approve", "reject", "undo"],
        images: Sequence[str],
        *,
        author: str,
        reason: str,
    ) -> dict[str, Any]:
        """Approve frames that were held back, reject them, or take that back.

        Returns:
            ``decided``, their number, and ``left``, the ids of those that cannot be approved.
        """
        body = {"decision": decision, "images": list(images), "author": author, "reason": reason}
        return self._service.send("POST", "/v1/review/decisions", body)

    # Picking

    def selection(self) -> dict[str, Any]:
        """Return the JSON schema of the keys of ``pick``."""
        return self._service.get("/v1/selection")

    def estimate(self, **keys: Any) -> dict[str, Any]:
        """Return about how many images of each organ ``pick`` would choose; nothing is picked."""
        return self._service.send("POST", "/v1/selection/estimate", keys)

    def pick(
        self,
        name: str,
        *,
        wait: bool = True,
        progress: Callable[[str, float], None] | None = None,
        **keys: Any,
    ) -> dict[str, Any]:
        """Have the service pick a coreset.

        Args:
            name: of the coreset.
            wait: until it is done; otherwise return the job at once.
            progress: called with stage and fraction while waiting.
            **keys: of `echostill select`: ``budget``, ``method``, ``seed``, ...

        Returns:
            The job.

        Raises:
            EchostillError: The job failed or was cancelled.
        """
        job = self._service.send("POST", "/v1/coresets", {"name": name, **keys})
        while wait and job["state"] not in FINISHED:
            time.sleep(POLL_SECONDS)
            job = self.job(job["id"])
            if progress is not None:
                progress(job["stage"], job["fraction"])
        if wait and job["state"] != "done":
            raise EchostillError(f"picking '{name}' {job['state']}: {job['message']}")
        return job

    def jobs(self) -> list[dict[str, Any]]:
        """Return the latest jobs, newest first."""
        return list(self._service.get("/v1/jobs")["items"])

    def job(self, job_id: str) -> dict[str, Any]:
        """Return one job and its progress."""
        return self._service.get(f"/v1/jobs/{part(job_id)}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job."""
        return self._service.send("DELETE", f"/v1/jobs/{part(job_id)}")

    def _pages(self, path: str, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
        cursor: str | None = None
        while True:
            page = self._service.get(path, **query, cursor=cursor)
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def _add_pin(
        self, action: str, images: Sequence[str], author: str, reason: str
    ) -> dict[str, Any]:
        body = {"action": action, "images": list(images), "author": author, "reason": reason}
        return self._service.send("POST", "/v1/pins", body)


def _query(
    sql: str, parameters: Sequence[Any], coreset: str | None, limit: int, timeout: float | None
) -> dict[str, Any]:
    return {
        "sql": sql,
        "parameters": list(parameters),
        "coreset": coreset,
        "limit": limit,
        "timeout": QUERY_SECONDS if timeout is None else timeout,
    }
