"""Leases with real files, real processes and real threads; seconds are shortened to hundredths."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.tables import lease
from echostill.platform.tables.lease import Lease, hold
from echostill.platform.tables.storage import Storage


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.02)


def lease_of(storage, owner, *, result="runs/a", alone=True, **holder):
    made = replace(lease._holder("distill", result, alone), owner=owner, **holder)
    return Lease(storage.at(lease.FOLDER), made, storage.root)


def leases(storage):
    return storage.at(lease.FOLDER).list()


def test_the_second_is_refused_with_who_has_it(tmp_path):
    storage = Storage(str(tmp_path))
    first = lease_of(storage, "first", job="raysubmit_1", host="node-7", started="2026-01-02 03:04")
    first.acquire()
    with pytest.raises(UsageError) as refused, hold(storage, "score", "scores"):
        pytest.fail("two at once")
    for word in ("raysubmit_1", "node-7", "2026-01-02 03:04", "`echostill distill`", str(tmp_path)):
        assert word in str(refused.value)
    assert "`ray job stop raysubmit_1`" in str(refused.value)
    first.release()
    with hold(storage, "score", "scores"):
        assert len(leases(storage)) == 1
    assert not (tmp_path / lease.FOLDER).exists()


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (("runs/a", True), ("pool", True), False),
        (("runs/a", True), ("coresets/a", False), True),
        (("coresets/b", False), ("coresets/a", False), True),
        (("coresets/a", False), ("coresets/a", False), False),
    ],
)
def test_who_may_work_beside_whom(tmp_path, first, second, both):
    storage = Storage(str(tmp_path))
    earlier = lease_of(storage, "first", result=first[0], alone=first[1])
    later = lease_of(storage, "second", result=second[0], alone=second[1])
    earlier.acquire()
    if both:
        later.acquire()
    else:
        with pytest.raises(UsageError, match="refused"):
            later.acquire()
    earlier.release()
    later.release()


def test_of_many_who_ask_at_once_never_two_have_it(tmp_path):
    storage = Storage(str(tmp_path))
    inside, most, worked, barrier = [], [], [], threading.Barrier(6)

    def work(number):
        own = lease_of(storage, f"owner {number}")
        barrier.wait()
        try:
            own.acquire()
        except UsageError:
            return
        finally:
            worked.append(number)
        inside.append(number)
        most.append(len(inside))
        time.sleep(0.05)
        inside.remove(number)
        own.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(worked) == 6
    assert set(most) == {1}


def test_what_one_process_does_inside_of_its_own_work_is_no_second_job(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    with hold(storage, "run", "run"), hold(storage, "score", "scores"):
        monkeypatch.setenv(lease.OWNER_VARIABLE, lease.owner())
        code = (
            "import sys; from echostill.platform.tables.lease import hold; "
            "from echostill.platform.tables.storage import Storage\n"
            "with hold(Storage(sys.argv[1]), 'distill', 'runs/b'): print('in')"
        )
        sent = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
        )
        assert sent.stdout == "in\n", sent.stderr


def test_the_lease_of_a_process_that_is_gone_is_taken_over_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 1e9)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    storage = Storage(str(tmp_path))
    lease_of(storage, "gone", process=gone.pid, began=1)._write(lease.HELD)
    with hold(storage, "distill", "runs/a"):
        pass
    assert "its process is gone" in capsys.readouterr().err.replace("\n", " ")


def test_a_lease_of_elsewhere_is_dead_when_it_is_no_longer_renewed(tmp_path, capsys):
    storage = Storage(str(tmp_path))
    lease_of(storage, "lost", machine="elsewhere")._write(lease.HELD)
    with hold(storage, "distill", "runs/a"):
        assert len(leases(storage)) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert "taking over the store" in said
    assert "no sign of life" in said


def test_a_lease_of_elsewhere_that_is_renewed_lives(tmp_path):
    storage = Storage(str(tmp_path))
    other = lease_of(storage, "far", machine="elsewhere")
    other.acquire()
    with pytest.raises(UsageError, match="refused"), hold(storage, "distill", "runs/a"):
        pytest.fail("two at once")
    other.release()


def test_a_look_finds_who_is_at_work_and_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 1e9)
    storage = Storage(str(tmp_path))
    assert lease.at_work(storage) is None
    first = lease_of(storage, "first")
    first.acquire()
    assert lease.at_work(storage).stage == "distill"
    first.release()
    lease_of(storage, "gone", process=2**22 + 1)._write(lease.HELD)
    lease_of(storage, "elsewhere", machine="another")._write(lease.HELD)
    seen = leases(storage)
    assert lease.at_work(storage).owner == "elsewhere"
    assert leases(storage) == seen
    monkeypatch.setattr(lease, "STALE_SECONDS", -1e9)
    assert lease.at_work(storage) is None


def test_who_was_taken_for_dead_ends_and_says_by_whom(tmp_path):
    storage = Storage(str(tmp_path))

    def work():
        with hold(storage, "distill", "runs/a"):
            (name,) = leases(storage)
            taker = replace(
                lease._holder("score", "scores", True),
                owner="taker",
                replaced=[name.removesuffix(".json")],
            )
            Lease(storage.at(lease.FOLDER), taker, storage.root)._write(lease.HELD)
            time.sleep(60)  # ended by the lease, long before

    with pytest.raises(EchostillError, match="lost the store") as ended:
        work()
    assert "taken over by `echostill score`" in str(ended.value)


def test_a_store_that_nothing_came_into_is_not_left_behind(tmp_path):
    storage = Storage(str(tmp_path / "a" / "store"))
    with hold(storage, "ingest", "pool"):
        assert not lease.is_store(storage)
        with hold(storage, "ingest", "pool"):
            assert not lease.is_store(storage)
    assert not (tmp_path / "a").exists()
    with hold(storage, "ingest", "pool"):
        storage.write("pool/part", b"")
        assert lease.is_store(storage)
    assert storage.list(recursive=True) == ["pool/part"]


@pytest.mark.slow
def test_leases_in_a_bucket(object_store, monkeypatch):
    for name, value in object_store.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lease, "STALE_SECONDS", 3.0)  # of a clock that counts seconds
    storage = Storage("s3://hospital/leased")
    first = lease_of(storage, "far", machine="elsewhere")
    first.acquire()
    with pytest.raises(UsageError, match="refused"), hold(storage, "score", "scores"):
        pytest.fail("two at once")
    first._ended.set()  # as if killed: it renews no more
    with hold(storage, "score", "scores"):
        (name,) = leases(storage)
        assert json.loads(storage.read(f"{lease.FOLDER}/{name}"))["stage"] == "score"
    assert leases(storage) == []
