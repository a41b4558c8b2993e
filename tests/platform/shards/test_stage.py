import json
import os
import time
import urllib.request
from dataclasses import replace

import pyarrow as pa
import pytest

from echostill.platform.cluster.nodes import Node
from echostill.platform.cluster.plans import plan_workers
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.shards.events import read_events
from echostill.platform.shards.outcome import Outcome
from echostill.platform.shards.run import check_arrived
from echostill.platform.shards.stage import ShardedStage
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import Table

SCHEMA = pa.schema([("value", pa.int64())])


class Worker:
    """Doubles numbers; negative ones are bad until they are mended; writes down what it ran."""

    def __init__(self, log, fail_on=None):
        self.log, self.fail_on = log, fail_on

    def __call__(self):
        return self

    def process(self, payload):
        with open(self.log, "a") as file:
            file.write(json.dumps(payload) + "\n")
        if self.fail_on is not None and self.fail_on in payload:
            raise RuntimeError(f"cannot do {self.fail_on}")
        mended = os.path.exists(f"{self.log}.mended")
        numbers = [abs(n) if mended else n for n in payload]
        bad = [
            {"stage": "toy", "id": str(n), "source": "", "error_class": "Negative", "message": "no"}
            for n in numbers
            if n < 0
        ]
        good = pa.table({"value": pa.array([2 * n for n in numbers if n >= 0], pa.int64())})
        units = [(0, 1) if n < 0 else (1, 0) for n in numbers]
        return Outcome(good, pa.Table.from_pylist(bad, schema=QUARANTINE_SCHEMA), units)

    def process_units(self, payload, units):
        return self.process([payload[unit] for unit in units])


def make_stage(folder, max_error_rate=1.0, **waiting):
    return ShardedStage(
        "toy",
        Storage(str(folder / "toy")),
        Storage(str(folder / "quarantine")),
        SCHEMA,
        Fingerprint({"a": 1}, "1", {}, {}),
        max_error_rate,
        Storage(str(folder / "events")),
        **waiting,
    )


PAYLOADS = [[1, 2], [3, -4], [5], [-6, 7, 8]]


def run(folder, workers=1, fail_on=None, max_error_rate=1.0, payloads=PAYLOADS, **waiting):
    worker = Worker(str(folder / "log"), fail_on)
    stage = make_stage(folder, max_error_rate, **waiting)
    return stage.run(
        payloads, worker, plan_workers(workers, len(payloads), [Node(2)]), progress=False
    )


def retry(folder, payloads=PAYLOADS, max_error_rate=1.0):
    stage = make_stage(folder, max_error_rate)
    worker = Worker(str(folder / "log"))
    return stage.retry(payloads, worker, plan_workers(1, len(payloads), [Node(2)]), progress=False)


def events(folder):
    return read_events(Storage(str(folder / "events")), "toy")


def runs(folder):
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "log" not in path.name and path.parent.name != "events"
    }


def test_a_shard_that_a_node_wrote_into_a_folder_of_its_own_is_missed(tmp_path):
    here, there = make_stage(tmp_path / "here"), make_stage(tmp_path / "there")
    record = there.write(2, Worker(str(tmp_path / "log")).process([5]))
    check_arrived(there, record, "10.0.0.2")
    with pytest.raises(UsageError, match=r"node 10\.0\.0\.2 wrote shard 2 to .*here/toy'"):
        check_arrived(here, record, "10.0.0.2")


def test_every_row_is_in_the_table_or_in_quarantine(ray_cluster, tmp_path):
    done = run(tmp_path)
    assert (done.rows_in, done.rows_out, done.quarantined) == (8, 6, 2)
    table = Table.open(Storage(str(tmp_path / "toy")), "toy").read()
    assert table["value"].to_pylist() == [2, 4, 6, 10, 14, 16]
    held = Table.open(Storage(str(tmp_path / "quarantine")), "toy").read()
    assert held["id"].to_pylist() == ["-4", "-6"]


def test_two_workers_and_a_pool_that_grows_write_the_same_bytes(ray_cluster, tmp_path):
    for name, workers in (("one", 1), ("two", 2), ("pool", (1, 3))):
        (tmp_path / name).mkdir()
        run(tmp_path / name, workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "pool")


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


def test_what_killed_writers_left_half_written_is_swept(ray_cluster, tmp_path):
    for name in ("calm", "rough"):
        (tmp_path / name).mkdir()
    for folder in ("toy", "toy/done", "quarantine"):
        (tmp_path / "rough" / folder).mkdir(exist_ok=True)
        (tmp_path / "rough" / folder / "part-00001.parquet.4cc6fb5c.tmp").write_bytes(b"PAR1")
    run(tmp_path / "calm")
    run(tmp_path / "rough")
    assert contents(tmp_path / "rough") == contents(tmp_path / "calm")


def test_what_was_mended_is_as_if_it_had_worked_at_first(ray_cluster, tmp_path):
    rough, calm = tmp_path / "rough", tmp_path / "calm"
    rough.mkdir()
    calm.mkdir()
    (calm / "log.mended").touch()
    run(calm)
    run(rough)
    broken = contents(rough)
    (rough / "log").unlink()
    tried = retry(rough)  # nothing was mended
    assert sorted(runs(rough)) == [[-6], [-4]]  # the bad rows alone, in either order
    assert (tried.before, tried.changed, tried.accounting.quarantined) == (2, False, 2)
    assert contents(rough) == broken

    (rough / "log.mended").touch()
    tried = retry(rough)
    assert (tried.before, tried.changed, tried.left) == (2, True, 0)
    assert (tried.accounting.rows_in, tried.accounting.quarantined) == (8, 0)
    assert contents(rough) == contents(calm)
    assert "now stale: scores" not in tried.describe([])
    assert "as it was before: scores, coresets/a." in tried.describe(["scores", "coresets/a"])
    assert "nothing in quarantine" in retry(rough).describe([])
    modes = [event["mode"] for event in events(rough) if event["event"] == "started"]
    assert modes == ["run", "retry", "retry"]


def test_the_quarantine_of_an_unfinished_stage(ray_cluster, tmp_path):
    """What finished is tried again; what never ran waits for the stage's own command."""
    rough, calm = tmp_path / "rough", tmp_path / "calm"
    rough.mkdir()
    calm.mkdir()
    (calm / "log.mended").touch()
    run(calm)
    run(rough)
    (rough / "toy" / "manifest.json").unlink()
    (rough / "toy" / "done" / "00003.json").unlink()
    (rough / "log.mended").touch()
    tried = retry(rough)
    assert (tried.before, tried.accounting.quarantined, tried.left) == (1, 0, 1)
    assert "1 shard(s) have not run yet" in tried.describe([])
    assert not (rough / "toy" / "manifest.json").exists()
    run(rough)
    assert contents(rough) == contents(calm)


def test_every_end_of_a_run_is_in_its_log(ray_cluster, tmp_path):
    with pytest.raises(EchostillError):
        run(tmp_path, fail_on=5)
    kinds = [event["event"] for event in events(tmp_path)]
    assert kinds[0] == "started"
    assert kinds[-1] == "failed"
    assert "cannot do 5" in events(tmp_path)[-1]["message"]
    cut = [event for event in events(tmp_path) if "repeated" in event]
    assert cut == []
    run(tmp_path)
    later = events(tmp_path)[len(kinds) :]
    assert [event["event"] for event in later][:2] == ["started", "resumed"]
    assert later[1]["repeated"] == [2]  # the attempt that failed left its mark
    shards = [event for event in later if event["event"] == "shard"]
    assert shards[-1]["done"] == shards[-1]["shards"] == len(PAYLOADS)
    assert shards[-1]["rows_out_so_far"] == 6
    assert shards[-1]["quarantined_so_far"] == 2
    assert shards[-1]["seconds"]["work"] >= 0
    assert later[-1]["event"] == "finished"
    assert (later[-1]["rows_in"], later[-1]["quarantined"]) == (8, 2)
    assert not list((tmp_path / "toy").glob("running/*"))


def test_prometheus_reads_what_workers_count(ray_cluster, tmp_path):
    """Ray's own endpoint on this node has the rows, by stage."""
    import ray

    run(tmp_path)
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with urllib.request.urlopen(address, timeout=20) as page:
            lines = page.read().decode().splitlines()
        found = [line for line in lines if 'stage="toy"' in line or 'Stage="toy"' in line]
        if any("echostill_rows_total" in line for line in found):
            break
        time.sleep(1)
    for name in ("rows_total", "quarantined_total", "seconds_total", "rows_per_second"):
        assert any(line.startswith(f"ray_echostill_{name}{{") for line in found), name


def test_a_rotten_run_ends_and_keeps_what_it_finished(ray_cluster, tmp_path):
    with pytest.raises(EchostillError, match=r"2 of 8 rows.*above max_error_rate 10\.0%"):
        run(tmp_path, max_error_rate=0.1)
    assert len(list((tmp_path / "toy" / "done").iterdir())) == 4
    (tmp_path / "log").unlink()
    assert run(tmp_path, max_error_rate=0.5).shards_resumed == 4
    assert not (tmp_path / "log").exists()


def test_rows_that_wait_for_a_person_are_no_errors(ray_cluster, tmp_path):
    done = run(tmp_path, max_error_rate=0.0, held_back_class="Negative")
    assert (done.rows_in, done.quarantined, done.held_back, done.errors) == (8, 2, 2, 0)
    assert make_stage(tmp_path).accounting() == replace(done, shards_resumed=4)
    assert events(tmp_path)[-1]["held_back"] == 2


def test_rows_that_wait_have_a_limit_of_their_own(ray_cluster, tmp_path):
    waiting = {"held_back_class": "Negative", "max_held_back_rate": 0.2}
    with pytest.raises(EchostillError, match=r"2 of 8 rows.*held back.*max_held_back_rate 20\.0%"):
        run(tmp_path, max_error_rate=0.0, **waiting)
    waiting["max_held_back_rate"] = 0.25
    assert run(tmp_path, max_error_rate=0.0, **waiting).shards_resumed == 4


def test_plans_leave_the_readers_room():
    for cpus in (1, 2, 4, 64):
        for workers in (None, 1, 2):
            plan = plan_workers(workers, 100, [Node(cpus)])
            assert plan.workers * plan.cpus_per_worker < cpus
    assert plan_workers(None, 3, [Node(64)]).workers == 3
    assert plan_workers(None, 100, [Node(8, 2)], device="auto").gpus_per_worker == 1
    with pytest.raises(UsageError, match="at most 8"):
        plan_workers(50, 100, [Node(2)])


def test_plans_leave_decoders_their_cpus():
    """A decoder takes a whole CPU: with none left, the actors would wait for it for ever."""
    for cpus, gpus, workers in ((2, 0, 1), (2, 1, None), (16, 1, None), (64, 8, None), (4, 4, 4)):
        nodes = [Node(cpus, gpus)]
        plan = plan_workers(workers, 100, nodes, device="auto", decoders=2 if not gpus else None)
        assert plan.decoders >= 1
        assert plan.workers * plan.cpus_per_worker + 1 <= cpus
    plan = plan_workers(None, 100, [Node(16, 1)], device="auto", decoders=None)
    assert (plan.workers, plan.decoders, plan.gpus_per_worker) == (1, 14, 1)
    assert plan_workers(None, 100, [Node(16)], device="auto", decoders=None).decoders == 0
    assert plan_workers(None, 3, [Node(64, 1)], device="auto", decoders=None).decoders == 3
    with pytest.raises(UsageError, match="decoders=0"):
        plan_workers(1, 100, [Node(1)], decoders=1)
