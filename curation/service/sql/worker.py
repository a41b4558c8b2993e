"""A process that runs callers' SQL: DuckDB without files, network or settings, in limited memory.

It maps the tables that the service names and answers one query at a time. A query that exhausts
memory or crashes DuckDB ends this process and not the service. The views are Arrow memory, so
DuckDB needs no files, and all access to files can be disabled.
"""

import contextlib
import json
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, NoReturn

import duckdb
import pyarrow as pa

from echostill.curation.service.sql.check import check_select
from echostill.curation.service.sql.frames import CHUNK, END, FAILURE, HEADER, READY, RESULT
from echostill.platform.errors import UsageError
from echostill.platform.lazy import spare_pandas

MEMORY_LIMIT = "1GB"  # as DuckDB counts it
PROCESS_BYTES = 3 * 2**30  # private memory, mapped tables not counted; beyond it malloc fails
JSON_BYTES = 32 * 2**20
ROWS_PER_FETCH = 1024
NICENESS = 5  # other requests go first
RECURSION = 10_000  # calls: queries are nested
SAFE = (
    "SET threads = {threads}",
    f"SET memory_limit = '{MEMORY_LIMIT}'",
    "SET temp_directory = ''",
    "SET python_enable_replacements = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


class Views:
    """The views of one state of the store, in a DuckDB database in memory."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self.description = description
        self.connection = duckdb.connect(":memory:")
        threads = max(1, (os.cpu_count() or 2) // 2)
        for line in SAFE:
            self.connection.execute(line.format(threads=threads))
        self._tables: dict[str, pa.Table] = {}
        self.names = [view["name"] for view in description["views"]]
        for index, view in enumerate(description["views"]):
            self._create(view, index)

    def _create(self, view: Mapping[str, Any], index: int) -> None:
        """Create a view of one mapped file, or of several with the same columns."""
        selects = []
        for number, source in enumerate(view["sources"]):
            inner = f"source_{index}_{number}"
            table = self._mapped(source["file"])
            columns = source.get("columns") or table.column_names
            table = table.select(columns)
            if source.get("joined"):
                other = self._mapped(source["joined"]["file"])
                for name in source["joined"]["columns"]:
                    table = table.append_column(name, other[name])
            self.connection.register(inner, table)
            label = source.get("label")
            prefix = f"{_literal(label['value'])} AS {label['name']}, " if label else ""
            where = f" WHERE {source['where']}" if source.get("where") else ""
            selects.append(f"SELECT {prefix}* FROM {inner}{where}")
        body = " UNION ALL BY NAME ".join(selects)
        self.connection.execute(f'CREATE TEMP VIEW "{view["name"]}" AS {body}')

    def _mapped(self, file: str) -> pa.Table:
        if file not in self._tables:
            self._tables[file] = pa.ipc.open_file(pa.memory_map(file)).read_all()
        return self._tables[file]


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class Worker:
    """Answers requests from standard input on standard output."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output = output
        self._views: Views | None = None
        self._interrupted_by = ""
        self._running = False
        self._lock = threading.Lock()

    def interrupt(self, reason: str) -> None:
        """Stop the running query."""
        with self._lock:
            if self._running and self._views is not None:
                self._interrupted_by = reason
                self._views.connection.interrupt()

    def ready(self) -> None:
        """Tell the service that this process is ready."""
        self._send(READY)

    def answer(self, request: Mapping[str, Any]) -> None:
        """Run one query and write its frames."""
        timer = threading.Timer(request["timeout"], self.interrupt, ["timeout"])
        timer.daemon = True
        try:
            if self._views is None or self._views.description != request["description"]:
                self._views = Views(request["description"])
            with self._lock:
                self._running, self._interrupted_by = True, ""
            timer.start()
            self._run(request, self._views)
        except (duckdb.Error, UsageError, pa.ArrowException) as error:
            self._fail(error)
        except MemoryError:
            self._send(FAILURE, kind="memory", message="the query needs too much memory.")
        except RecursionError:
            self._send(FAILURE, kind="sql", message="the query is nested too deeply.")
        finally:
            timer.cancel()
            with self._lock:
                self._running = False

    def _run(self, request: Mapping[str, Any], views: Views) -> None:
        connection, started = views.connection, time.perf_counter()
        check_select(connection, request["sql"], views.names)
        if request["arrow"]:
            # A relation is read as it is computed; of `execute` DuckDB would copy all rows first.
            relation = connection.sql(request["sql"], params=request["parameters"] or None)
            self._stream(relation, request["limit"])
        else:
            found = connection.execute(request["sql"], request["parameters"])
            self._rows(found, request["limit"], started)

    def _rows(self, found: duckdb.DuckDBPyConnection, limit: int, started: float) -> None:
        described = found.description or []
        names = unique_names([name for name, *_ in described])
        columns = [
            {"name": name, "type": str(kind)}
            for name, (_, kind, *_) in zip(names, described, strict=True)
        ]
        rows: list[str] = []
        size, truncated = 0, False
        while not truncated:
            fetched = found.fetchmany(min(ROWS_PER_FETCH, limit + 1 - len(rows)))
            if not fetched:
                break
            for row in fetched:
                text = json.dumps([_plain(value) for value in row], allow_nan=False)
                size += len(text)
                if len(rows) == limit or size > JSON_BYTES:
                    truncated = True
                    break
                rows.append(text)
        elapsed = round((time.perf_counter() - started) * 1000, 2)
        head = json.dumps({"columns": columns, "truncated": truncated, "elapsed_ms": elapsed})
        body = f'{head[:-1]}, "rows": [{", ".join(rows)}]}}'
        self._frame(RESULT, body.encode())

    def _stream(self, found: duckdb.DuckDBPyRelation, limit: int) -> None:
        # Closed at the end: while it is open, the connection takes no other query.
        with contextlib.closing(found.to_arrow_reader(ROWS_PER_FETCH * 16)) as reader:
            self._send_batches(reader, limit)
        self._send(END)

    def _send_batches(self, reader: pa.RecordBatchReader, limit: int) -> None:
        named = zip(unique_names(reader.schema.names), reader.schema, strict=True)
        schema = pa.schema([field.with_name(name) for name, field in named])
        sink = _Frames(self)
        left, truncated, error = limit, False, ""
        with pa.ipc.new_stream(pa.PythonFile(sink, "w"), schema) as writer:
            try:
                for batch in reader:
                    truncated = batch.num_rows > left
                    if batch.num_rows and left:
                        renamed = pa.RecordBatch.from_arrays(batch.columns, schema=schema)
                        writer.write_batch(renamed.slice(0, left))
                    left -= min(left, batch.num_rows)
                    if truncated:
                        break
            except (duckdb.Error, pa.ArrowException, OSError) as failure:
                error = self._words(failure)
            empty = [pa.nulls(0, kind) for kind in schema.types]  # enums too
            last = pa.RecordBatch.from_arrays(empty, schema=schema)
            end = {"error": error} if error else {"truncated": json.dumps(truncated)}
            writer.write_batch(last, custom_metadata=end)

    def _fail(self, error: Exception) -> None:
        kind = "timeout" if self._interrupted_by == "timeout" else "sql"
        if isinstance(error, duckdb.OutOfMemoryException):
            kind = "memory"
        self._send(FAILURE, kind=kind, message=self._words(error))

    def _words(self, error: Exception) -> str:
        if self._interrupted_by:
            return f"the query was stopped: {self._interrupted_by}."
        if isinstance(error, duckdb.OutOfMemoryException):
            return f"the query needs more than {MEMORY_LIMIT} of memory."
        return str(error)[:2000]

    def _send(self, frame: bytes, **message: str) -> None:
        self._frame(frame, json.dumps(message).encode())

    def _frame(self, kind: bytes, data: bytes) -> None:
        self._output.write(HEADER.pack(kind, len(data)))
        self._output.write(data)
        self._output.flush()

    def chunk(self, data: bytes) -> None:
        """Send a piece of an Arrow stream."""
        self._frame(CHUNK, data)


class _Frames:
    """A file that Arrow writes into; each write becomes a frame."""

    closed = False

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._written = 0

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._worker.chunk(piece)
        self._written += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        """Nothing is buffered here."""

    def close(self) -> None:
        self.closed = True


def unique_names(names: Sequence[str]) -> list[str]:
    """Return column names with repeated ones numbered: ``organ, organ`` is ``organ, organ_1``.

    A join repeats names, and a table with one name twice loses a column on its way to a mapping.
    """
    taken, found = set(names), []
    seen: set[str] = set()
    for name in names:
        unique, number = name, 0
        while unique in seen or (number and unique in taken):
            number += 1
            unique = f"{name}_{number}"
        seen.add(unique)
        found.append(unique)
    return found


def _plain(value: Any) -> Any:
    """Return a value that JSON can represent: others as text, NaN and infinities as null."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


def main() -> None:
    """Answer what comes on standard input on standard output."""
    serve(os.dup(0), os.dup(1))


def serve(requests_from: int, answers_to: int) -> NoReturn:
    """Answer requests until the service closes its end of their pipe or ends.

    Args:
        requests_from: file descriptor of the requests, JSON lines.
        answers_to: file descriptor of the answers.
    """
    output = os.fdopen(answers_to, "wb")
    os.dup2(2, 1)  # whatever prints, prints elsewhere
    resource.setrlimit(resource.RLIMIT_DATA, (PROCESS_BYTES, PROCESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # nothing that runs here can write a file
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    sys.setrecursionlimit(RECURSION)
    spare_pandas()
    worker = Worker(output)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        source = os.fdopen(requests_from, "rb")
        for line in source:
            request = json.loads(line)
            if request.get("cancel"):
                worker.interrupt("cancelled")
            else:
                requests.put(request)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    worker.ready()
    while True:
        worker.answer(requests.get())


if __name__ == "__main__":
    main()
