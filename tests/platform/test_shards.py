import json
import os

import pyarrow as pa
import pytest

from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.runs import Fingerprint
from echostill.platform.runtime import plan_workers
from echostill.platform.schemas import QUARANTINE_SCHEMA
from echostill.platform.shards import Outcome, ShardedStage
from echostill.platform.storage import Storage
from echostill.platform.tables import Table

SCHEMA = pa.schema([("value", pa.int64())])


class Worker:
    """Doubles numbers; negative ones are bad rows; writes down which shards it ran."""

    def __init__(self, log, fail_on=None):
        self.log, self.fail_on = log, fail_on

    def __call__(self):
        return self

    def process(self, payload):
        with open(self.log, "a") as file:
            file.write(json.dumps(payload) + "\n")
        if self.fail_on is not None and self.fail_on in payload:
            raise RuntimeError(f"cannot do {self.fail_on}")
        bad = [
            {"stage": "toy", "id": str(n), "source": "", "error_class": "Negative", "message": "no"}
            for n in payload
            if n < 0
        ]
        good = pa.table({"value": pa.array([2 * n for n in payload if n >= 0], pa.int64())})
        return Outcome(good, pa.Table.from_pylist(bad, schema=QUARANTINE_SCHEMA))


def make_stage(folder, max_error_rate=1.0):
    return ShardedStage(
        "toy",
        Storage(str(folder / "toy")),
        Storage(str(folder / "quarantine")),
        SCHEMA,
        Fingerprint({"a": 1}, "1", {}, {}),
        max_error_rate,
    )


PAYLOADS = [[1, 2], [3, -4], [5], [-6, 7, 8]]


def run(folder, workers=1, fail_on=None, max_error_rate=1.0, payloads=PAYLOADS):
    worker = Worker(str(folder / "log"), fail_on)
    stage = make_stage(folder, max_error_rate)
    return stage.run(payloads, worker, plan_workers(workers, len(payloads), 2), progress=False)


def runs(folder):
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "log"
    }


def test_every_row_is_in_the_table_or_in_quarantine(ray_cluster, tmp_path):
    done = run(tmp_path)
    assert (done.rows_in, done.rows_out, done.quarantined) == (8, 6, 2)
    table = Table.open(Storage(str(tmp_path / "toy")), "toy").read()
    assert table["value"].to_pylist() == [2, 4, 6, 10, 14, 16]
    held = Table.open(Storage(str(tmp_path / "quarantine")), "toy").read()
    assert held["id"].to_pylist() == ["-4", "-6"]


def test_two_workers_write_the_same_bytes(ray_cluster, tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_resuming_runs_only_what_is_missing_or_damaged(ray_cluster, tmp_path):
    with pytest.raises(EchostillError, match=r"cannot do 5.*Finished shards are kept"):
        run(tmp_path, fail_on=5)
    finished = len(list((tmp_path / "toy" / "done").iterdir()))
    assert not (tmp_path / "toy" / "manifest.json").exists()
    (tmp_path / "log").unlink()
    done = run(tmp_path)
    assert done.shards_resumed == finished
    assert len(runs(tmp_path)) == len(PAYLOADS) - finished
    whole = contents(tmp_path)

    os.truncate(tmp_path / "toy" / "part-00001.parquet", 10)
    (tmp_path / "toy" / "manifest.json").unlink()
    (tmp_path / "log").unlink()
    run(tmp_path)
    assert runs(tmp_path) == [PAYLOADS[1]]
    assert contents(tmp_path) == whole


def test_a_rotten_run_ends_and_keeps_what_it_finished(ray_cluster, tmp_path):
    with pytest.raises(EchostillError, match=r"2 of 8 rows.*above max_error_rate 10\.0%"):
        run(tmp_path, max_error_rate=0.1)
    assert len(list((tmp_path / "toy" / "done").iterdir())) == 4
    (tmp_path / "log").unlink()
    assert run(tmp_path, max_error_rate=0.5).shards_resumed == 4
    assert not (tmp_path / "log").exists()


def test_plans_leave_the_readers_room():
    for cpus in (1, 2, 4, 64):
        for workers in (None, 1, 2):
            plan = plan_workers(workers, 100, cpus)
            assert plan.workers * plan.cpus_per_worker < cpus
    assert plan_workers(None, 3, 64).workers == 3
    assert plan_workers(None, 100, 8, gpus=2).gpus_per_worker == 1
    with pytest.raises(UsageError, match="at most 8"):
        plan_workers(50, 100, 2)
