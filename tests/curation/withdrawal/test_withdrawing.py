"""Withdrawing from a tiny store in which an image leaves every kind of trace.

Before and after, every file of the store is searched by code that shares nothing with the command.
"""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from echostill.curation.withdrawal.request import NothingFoundError, WithdrawalRequest
from echostill.curation.withdrawal.withdrawing import withdraw
from echostill.jobs.cli.main import app
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table
from echostill.platform.tables.verify import verify_store
from echostill.platform.withdrawal.state import PENDING
from echostill.platform.withdrawal.tombstones import Tombstones, write_tombstones

REASON = "consent was withdrawn"


def asked(tiny, kind, rows):
    """A request for the first of some rows, and its key."""
    value = {"image": tiny.image_id, "group": tiny.group, "patient": tiny.patient}[kind](rows[0])
    return WithdrawalRequest(kind, value), tiny.key if tiny.keyed else None


def everything(tiny, kind, rows):
    """All rows that go with some: their exact copies, and a frame of the patient held back."""
    found = set(rows)
    found |= {tiny.copy} if tiny.original in found else set()
    found |= {tiny.original} if tiny.copy in found else set()
    if kind != "image" and rows[0] // 4 == 1:
        found.add(tiny.held_back)
    return sorted(found)


@pytest.mark.parametrize(
    ("kind", "group", "keyed"),
    [("patient", 1, True), ("group", 1, False), ("group", 4, True), ("image", 5, True),
     ("image", 2, False)],
)  # fmt: skip
def test_nothing_is_left_and_the_receipt_is_complete(tiny_store, kind, group, keyed):
    tiny = tiny_store(keyed=keyed)
    rows = [group] if kind == "image" else list(tiny.rows_of(group))
    request, key = asked(tiny, kind, rows)
    gone = everything(tiny, kind, rows)
    groups = [group] if kind != "image" and keyed else []
    needles, store = tiny.needles(gone, groups), tiny.store
    half_written = Path(tiny.root, "pool", "part-00000.parquet.0a1b2c3d.tmp")
    half_written.write_bytes(store.pool().read("part-00000.parquet"))
    before = tiny.search(needles)
    planned = withdraw(tiny.root, request, reason=REASON, key=key, dry_run=True)
    assert tiny.search(needles) == before  # a dry run changes nothing
    receipt = withdraw(tiny.root, request, reason=REASON, key=key)
    assert vars(receipt) | {"finished": False, "at": ""} == vars(planned) | {"at": ""}
    assert tiny.search(needles) == {}
    assert not half_written.exists()
    assert verify_store(tiny.root).sound
    for file in {file for files in before.values() for file in files}:
        assert covered(receipt, file), file
    counts = {place: len(found) for place, found in tiny.rows_naming(before).items()}
    assert {place: receipt.rows.get(place, 0) for place in counts} == counts
    kept = json.loads(store.storage.read(f"withdrawn/receipts/{receipt.number}.json"))
    assert kept == vars(receipt)
    assert not any(tiny.patient(row) in json.dumps(kept) for row in range(24))


def covered(receipt, file):
    """Whether a receipt says that something went from a file or its folder."""
    folder = file.rpartition("/")[0]
    places = {*receipt.rows, *receipt.mended, *(one["place"] for one in receipt.files)}
    return any(file == place or f"{folder}/".startswith(f"{place}/") for place in places)


def test_what_stays_is_as_it_was(tiny_store):
    tiny = tiny_store()
    store = tiny.store
    tables = {"pool": store.pool(), "scores": store.scores(), "coreset": store.coreset("default")}
    before = {name: Table.open(storage, "x").read() for name, storage in tables.items()}
    untouched = store.pool().read("part-00002.parquet")
    request, key = asked(tiny, "group", tiny.rows_of(2))
    receipt = withdraw(tiny.root, request, reason=REASON, key=key)
    gone = {tiny.image_id(row) for row in tiny.rows_of(2)}
    for name, storage in tables.items():
        rows = [row for row in before[name].to_pylist() if row["image_id"] not in gone]
        assert Table.open(storage, "x").read().to_pylist() == rows
    assert store.pool().read("part-00002.parquet") == untouched
    (coreset,) = receipt.coresets
    chosen = sum(tiny.selected(row) for row in tiny.rows_of(2))
    assert (coreset["chosen"], coreset["left"]) == (chosen, 8 - chosen)
    assert store.open_coreset("default").manifest["budget"] == 8 - chosen
    copies = Table.open(store.duplicates(), "duplicates").read().to_pylist()
    assert {row["image_id"] for row in copies}.isdisjoint(gone)
    assert {row["kept_id"] for row in copies}.isdisjoint(gone)


def test_copies_whose_kept_image_goes_are_told_who_is_kept_now(tiny_store):
    tiny = tiny_store()
    request, key = asked(tiny, "image", [4])
    withdraw(tiny.root, request, reason=REASON, key=key)
    rows = Table.open(tiny.store.duplicates(), "duplicates").read().to_pylist()
    left = sorted(tiny.image_id(row) for row in (9, 10))
    found = [row for row in rows if row["image_id"] in left]
    assert [row["kept"] for row in found] == [True, False]
    assert (
        {row["kept_id"] for row in found} == {row["duplicate_group"] for row in found} == {left[0]}
    )


def test_who_has_seen_it_is_told(tiny_store):
    tiny = tiny_store()
    unseen, key = asked(tiny, "image", [7])  # not chosen
    receipt = withdraw(tiny.root, unseen, reason=REASON, key=key)
    assert receipt.runs == {"runs/other-0": "perhaps", "runs/proxy": "yes"}
    assert receipt.exports == []
    seen, key = asked(tiny, "image", [6])
    receipt = withdraw(tiny.root, seen, reason=REASON, key=key)
    assert receipt.runs["runs/student-0"] == "yes"
    assert receipt.reports == {"reports/default": "yes"}
    assert [one["to"] for one in receipt.exports] == ["/elsewhere"]
    assert receipt.number == "w-000002"


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_killed_anywhere_the_same_command_finishes(tiny_store, tmp_path_factory, data):
    """The state after a kill and a second call is that of a withdrawal which nothing disturbed."""
    root = tmp_path_factory.mktemp("stores")
    straight = tiny_store(root / "straight")
    write_tombstones(straight.store.storage, Tombstones("a salt"))
    killed = straight.copied(root / "killed")
    request, key = asked(straight, "patient", straight.rows_of(1))
    calls = counting(lambda: withdraw(straight.root, request, reason=REASON, key=key))
    at = data.draw(st.integers(1, calls))
    with pytest.raises(KeyboardInterrupt):
        counting(lambda: withdraw(killed.root, request, reason=REASON, key=key), stop=at)
    if killed.store.storage.exists(PENDING):
        with pytest.raises(EchostillError, match=r"run `echostill withdraw .*` again"):
            Store(killed.root)
        withdraw(killed.root, None)
    else:
        Store(killed.root)
        if not killed.store.storage.exists("withdrawn/receipts/w-000001.json"):
            withdraw(killed.root, request, reason=REASON, key=key)
    assert contents(killed) == contents(straight)
    assert verify_store(killed.root).sound


def counting(call, stop=0):
    """Count the changes of a call, and interrupt it before the one with a number."""
    made = 0

    def counted(method):
        def change(storage, name="", *rest):
            nonlocal made
            if "lease" not in storage.root and not name.startswith("lease"):
                made += 1
                if made == stop:
                    raise KeyboardInterrupt
            return method(storage, name, *rest)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "delete"):
            patch.setattr(Storage, name, counted(getattr(Storage, name)))
        call()
    return made


def contents(tiny):
    storage = tiny.store.storage
    found = {name: storage.read(name) for name in storage.list(recursive=True)}
    times = re.compile(rb"\d{4}-\d\d-\d\dT?\d\d:?\d\d:?\d\d[^\"]*|\d{4}-\d\d-\d\dT[\d:]+Z")
    where = str(storage.root).encode()
    return {
        re.sub(r"\d{4}-\d\d-\d\dT[^.]*\.\d+\+\d+-\w+", "time", name): times.sub(b"", data).replace(
            where, b""
        )
        for name, data in found.items()
        if not name.endswith(".db")
    }


@pytest.mark.slow  # a server of its own, and some hundred requests
def test_it_works_in_a_bucket(tiny_store, object_store, monkeypatch):
    for name, value in object_store.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("echostill.curation.withdrawal.withdrawing.NOTICED_SECONDS", 0)
    tiny = tiny_store("s3://hospital/withdrawal")
    request, key = asked(tiny, "patient", tiny.rows_of(1))
    needles = tiny.needles(everything(tiny, "patient", tiny.rows_of(1)), [1])
    assert tiny.search(needles)
    withdraw(tiny.root, request, reason=REASON, key=key)
    assert tiny.search(needles) == {}
    assert verify_store(tiny.root).sound


def test_verify_names_what_was_brought_back(tiny_store):
    tiny = tiny_store()
    part = tiny.store.pool().read("part-00000.parquet")
    request, key = asked(tiny, "image", [5])
    withdraw(tiny.root, request, reason=REASON, key=key)
    tiny.store.storage.write("pool/part-00000.parquet", part)
    tiny.store.storage.write("events/x.jsonl", f'{{"id": "{tiny.image_id(5)}"}}\n'.encode())
    problems = verify_store(tiny.root).problems
    assert any("pool" in one and "was withdrawn" in one for one in problems)
    assert any("events" in one and "holds its id" in one for one in problems)


@pytest.mark.parametrize(
    ("request_", "key", "reason", "message"),
    [
        (None, True, REASON, "no withdrawal from .* was interrupted"),
        (WithdrawalRequest("image", "0" * 32), True, REASON, "holds nothing of the image"),
        (WithdrawalRequest("patient", "Nobody"), True, REASON, "give it with --issuer"),
        (WithdrawalRequest("patient", "Patient-B1"), False, REASON, "--patient needs the key"),
        (WithdrawalRequest("patient", "Patient-B1"), True, " ", "needs a reason"),
        (WithdrawalRequest("patient", "Patient-B1"), True, "Patient-B1 left", "reword it"),
    ],
)
def test_wrong_usage_changes_nothing(tiny_store, request_, key, reason, message):
    tiny = tiny_store()
    before = contents(tiny)
    with pytest.raises(UsageError, match=message):
        withdraw(tiny.root, request_, reason=reason, key=tiny.key if key else None)
    assert contents(tiny) == before


def test_another_key_is_refused(tiny_store):
    tiny = tiny_store()
    request, _ = asked(tiny, "group", tiny.rows_of(1))
    with pytest.raises(UsageError, match="is not the one that the pool"):
        withdraw(tiny.root, request, reason=REASON, key=b"some other key, long enough")


def test_a_second_withdrawal_of_the_same_finds_nothing(tiny_store):
    tiny = tiny_store()
    request, key = asked(tiny, "patient", tiny.rows_of(1))
    withdraw(tiny.root, request, reason=REASON, key=key)
    with pytest.raises(NothingFoundError):
        withdraw(tiny.root, request, reason=REASON, key=key)


# Runs the command, and kills itself at the n-th file that it writes or deletes.
KILLED = """
import os, signal, sys
from echostill.jobs.cli.main import app
from echostill.platform.tables.storage import Storage
left = int(sys.argv.pop(1))
def counted(call):
    def step(storage, name, *rest):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(storage, name, *rest)
    return step
Storage.write, Storage.delete = counted(Storage.write), counted(Storage.delete)
app()
"""


@pytest.mark.slow
def test_the_command_after_kill_9(tiny_store):
    """The real command dies of SIGKILL in the middle; typed again, it finishes."""
    tiny = tiny_store()
    rows = everything(tiny, "patient", list(tiny.rows_of(1)))
    needles = tiny.needles(rows, [1])
    (Path(tiny.root).parent / "key").write_bytes(tiny.key)
    key_file = str(Path(tiny.root).parent / "key")
    arguments = ["withdraw", tiny.root, "--patient", tiny.patient(4), "--reason", REASON]
    arguments += ["--key-file", key_file]
    died = subprocess.run(
        [sys.executable, "-c", KILLED, "9", *arguments],
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL, died.stderr
    with pytest.raises(EchostillError, match="has begun and not ended"):
        verify_store(tiny.root)
    finished = CliRunner().invoke(app, arguments)
    assert finished.exit_code == 0, finished.output
    assert "w-000001: removed" in finished.output
    assert tiny.search(needles) == {}
    assert verify_store(tiny.root).sound
