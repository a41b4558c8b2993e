"""The process that answers SQL, spoken to as the service does: frames out, nothing else."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from echostill.curation.service.data.columns import write_columns
from echostill.curation.service.sql.worker import CHUNK, END, FAILURE, HEADER, READY, RESULT

ROWS = 100_000


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    path = tmp_path_factory.mktemp("views") / "pool.arrow"
    numbers = np.arange(ROWS)
    write_columns(path, pa.table({"a": numbers, "b": (numbers % 7).astype(np.int32)}))
    return {"views": [{"name": "pool", "sources": [{"file": str(path)}]}]}


class Process:
    def __init__(self, description):
        self.description = description
        self.child = subprocess.Popen(
            [sys.executable, "-m", "echostill.curation.service.sql.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONWARNINGS": "default"},
        )
        assert self.frame()[0] == READY

    def frame(self):
        kind, size = HEADER.unpack(self.child.stdout.read(HEADER.size))
        return kind, self.child.stdout.read(size)

    def ask(self, sql, *parameters, arrow=True, limit=1000):
        request = {
            "sql": sql,
            "parameters": list(parameters),
            "limit": limit,
            "timeout": 60.0,
            "arrow": arrow,
            "description": self.description,
        }
        self.child.stdin.write(json.dumps(request).encode() + b"\n")
        self.child.stdin.flush()
        pieces = []
        while True:
            kind, data = self.frame()
            if kind == CHUNK:
                pieces.append(data)
            elif kind == END:
                with pa.ipc.open_stream(io.BytesIO(b"".join(pieces))) as stream:
                    found = list(stream.iter_batches_with_custom_metadata())
                batches = [batch for batch, _ in found]
                return pa.Table.from_batches(batches), dict(found[-1][1])
            elif kind == RESULT:
                return json.loads(data)
            else:
                assert kind == FAILURE
                return json.loads(data)


@pytest.fixture(scope="module")
def process(description):
    process = Process(description)
    yield process
    process.child.stdin.close()
    warned = process.child.stderr.read().decode()
    process.child.wait()
    assert warned == ""  # of all the queries below


def test_each_kind_of_query_after_each_other(process):
    """No result that was not read to its end keeps the connection from the next query."""
    queries = [
        lambda: process.ask("from pool order by a", limit=3)[0]["a"].to_pylist() == [0, 1, 2],
        lambda: (
            process.ask("from pool order by a", arrow=False, limit=2)["rows"] == [[0, 0], [1, 1]]
        ),
        lambda: "boom" in process.ask("select error('boom') from pool")["message"],
        lambda: (
            process.ask("select a from pool where b = ? and a < ?", 3, 20)[0]["a"].to_pylist()
            == [3, 10, 17]
        ),
        lambda: "no view" in process.ask("from nothing")["message"],
        lambda: process.ask("describe pool")[0]["column_name"].to_pylist() == ["a", "b"],
    ]
    for first in queries:
        for second in queries:
            assert first()
            assert second()


def test_rows_are_sent_as_they_are_computed(process):
    """A hundred gigabytes, of which the first rows are wanted: more than the process may hold."""
    table, end = process.ask(
        "select x.a, repeat('y', 1000) as c from pool as x cross join range(1000)", limit=5
    )
    assert table.num_rows == 5
    assert end == {b"truncated": b"true"}
    again, _ = process.ask(
        "select x.a, repeat('y', ?) as c from pool as x cross join range(1000)", 1000, limit=5
    )
    assert again["c"].to_pylist() == ["y" * 1000] * 5


def test_what_fails_among_the_rows_is_said_at_their_end(process):
    table, end = process.ask(
        "select case when a = 90000 then error('boom') else a end as x from pool", limit=ROWS
    )
    assert b"boom" in end[b"error"]
    assert table["x"].to_pylist() == list(range(len(table)))


def test_all_rows_up_to_the_limit(process):
    for limit, truncated in ((ROWS - 1, b"true"), (ROWS, b"false"), (ROWS + 1, b"false")):
        table, end = process.ask("from pool order by a", limit=limit)
        assert table["a"].to_pylist() == list(range(min(limit, ROWS)))
        assert end == {b"truncated": truncated}
