"""Workers that are copies of the process that asks them."""

import json
import subprocess
import sys
import threading

import pyarrow as pa

from echostill.curation.service.data.columns import write_columns
from echostill.curation.service.sql.fork import can_fork

# Forking needs a process with one thread, which the tests' own may not be.
SCRIPT = """
import json, os, resource, signal, sys
from echostill.curation.service.problems import Problem
from echostill.curation.service.sql.fork import ForkedChild
from echostill.curation.service.sql.workers import Query, SqlPool

views = {"views": [{"name": "pool", "sources": [{"file": sys.argv[1]}]}]}
pool = SqlPool(1, forked=True)

def ask(sql):
    query = Query(sql, [], 10, 60.0, False, views)
    try:
        return json.loads(b"".join(pool.run(query, lambda: False)))["rows"]
    except Problem as problem:
        return str(problem)

def child():
    process = pool._free.get_nowait()
    pool._free.put(process)
    return process._child

queries = ["select sum(a) from pool", "select b from pool", "from read_csv('/etc/hosts')"]
said = [ask(sql) for sql in queries]
first = child()
said.append(isinstance(first, ForkedChild))
os.kill(first._pid, signal.SIGKILL)
said.append(first.wait())
said.append(ask("select count(*) from pool"))
said.append(child() is not first)
last = child()
pool.close()
said.append(last.poll())
said.append(resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY)
print(json.dumps(said))
"""


def test_a_copy_answers_and_ends_as_a_worker_does(tmp_path):
    path = tmp_path / "pool.arrow"
    write_columns(path, pa.table({"a": [1, 2, 39]}))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    total, unknown, refused, forked, killed, again, replaced, ended, free = json.loads(done.stdout)
    assert total == [[42]]
    assert '"b" not found' in unknown
    assert "read_csv" in refused
    assert forked
    assert replaced
    assert (killed, ended) == (-9, -9)
    assert again == [[3]]
    assert free  # the limits are the copy's


def test_a_process_with_threads_is_not_copied():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert not can_fork()
    finally:
        stop.set()
        thread.join()
