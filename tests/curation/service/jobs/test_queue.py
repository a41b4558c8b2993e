"""Picks in the background: the same bytes as the command's, and nothing half-done."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from echostill.curation.service.jobs.queue import DONE, FINISHED, QUEUED, Jobs
from echostill.curation.service.problems import Problem
from echostill.platform.tables.store import Store
from echostill.platform.tables.verify import verify_store


def finished(web, job_id, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = web.get(f"/v1/jobs/{job_id}").json()
        if job["state"] in FINISHED:
            return job
        time.sleep(0.1)
    raise AssertionError("the job did not finish")


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


KEYS = {"budget": 0.25, "clusters": 6, "seed": 5, "max_per_group": 3, "penalty": 0.5}


@pytest.mark.slow
def test_a_pick_is_the_commands_coreset_byte_for_byte(web, live, own_store, make):
    answer = web.post("/v1/coresets", json={"name": "picked", **KEYS})
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    job = finished(web, answer.json()["id"])
    assert (job["state"], job["fraction"]) == (DONE, 1.0)
    assert job["coreset"] == "/v1/coresets/picked"
    assert "59 of 236 images" in job["message"]
    arguments = [f"{key}={value}" for key, value in {"name": "picked", **KEYS}.items()]
    command = [sys.executable, "-m", "echostill.jobs.cli.main", "select", *arguments]
    subprocess.run([*command, f"store={own_store}"], check=True, capture_output=True)
    assert bytes_of(live.root / "coresets/picked") == bytes_of(own_store / "coresets/picked")
    records = "records/coresets/picked"
    assert bytes_of(live.root / records) == bytes_of(own_store / records)
    assert web.get("/v1/coresets/picked").json()["budget"] == 59
    assert web.get("/v1/coresets/picked/samples").json()["total"] == 59
    # The same request again is done at once; another of that name is refused.
    again = finished(web, web.post("/v1/coresets", json={"name": "picked", **KEYS}).json()["id"])
    assert again["message"].startswith("already done")
    other = web.post("/v1/coresets", json={"name": "picked", **KEYS, "seed": 6})
    assert other.status_code == 409
    assert "other values of seed:" in other.json()["detail"]


def test_wrong_picks_are_refused_in_words(web):
    for keys, words in (
        ({"budget": 9999}, "from 1 to 236 (the size of the pool)"),
        ({"budjet": 5}, "Did you mean 'budget'?"),
        ({"method": "dual-rnk"}, "Did you mean 'dual-rank'?"),
    ):
        answer = web.post("/v1/coresets", json={"name": "wrong", **keys})
        assert answer.status_code == 422
        assert words in answer.json()["detail"]


def test_a_failed_pick_says_why_and_leaves_nothing(web, live):
    # One image of each of the groups cannot fill this budget: known only when it is tried.
    body = {"name": "failing", "budget": 200, "max_per_group": 1}
    job = finished(web, web.post("/v1/coresets", json=body).json()["id"])
    assert job["state"] == "failed"
    assert "largest feasible budget is 40" in job["message"]
    assert not list(live.root.rglob("failing"))
    assert "failing" not in [item["name"] for item in web.get("/v1/coresets").json()["items"]]


def test_a_cancelled_pick_leaves_nothing(web, live):
    jobs = [
        web.post("/v1/coresets", json={"name": f"cancelled-{n}", **KEYS}).json() for n in range(2)
    ]
    for job in reversed(jobs):
        gone = web.delete(f"/v1/jobs/{job['id']}").json()
        assert gone["state"] == "cancelled"
        assert not list(live.root.rglob(job["name"]))
        assert web.delete(f"/v1/jobs/{job['id']}").status_code == 409
    listed = web.get("/v1/jobs").json()["items"]
    assert [job["id"] for job in jobs][::-1] == [
        job["id"] for job in listed if job["name"].startswith("cancelled")
    ]


class Command:
    """`echostill serve` as a process of its own."""

    def __init__(self, root):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "echostill.jobs.cli.main", "serve", str(root), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            found = re.match(r"serving\s+(http://\S+)/", line)
            if found:
                break
        token = Path(f"{root}.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        self.web = httpx2.Client(base_url=found.group(1), headers=headers, timeout=60)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.web.close()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        self.web.close()


def children_of(pid):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def gone(pids, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_kill_9_while_indexing_and_picking_loses_nothing(own_store, make, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where there is no index yet
    service = Command(own_store)
    assert "shown once" in service.said
    assert os.stat(f"{own_store}.token").st_mode & 0o077 == 0
    pin = {"action": "ban", "images": [make["identity"](1)], "author": "x", "reason": "y"}
    try:
        while service.web.get("/v1/pool").status_code == 503:
            time.sleep(0.1)
        first = service.web.post("/v1/coresets", json={"name": "one", **KEYS}).json()
        second = service.web.post("/v1/coresets", json={"name": "two", **KEYS, "seed": 9}).json()
        assert service.web.post("/v1/pins", json=pin).status_code == 201
        assert service.web.get("/readyz").status_code == 503  # the map is still being made
        while service.web.get(f"/v1/jobs/{first['id']}").json()["state"] == QUEUED:
            time.sleep(0.05)
        helpers = children_of(service.process.pid)
        assert len(helpers) >= 2
    finally:
        service.kill()
    assert gone(helpers), "a child outlived its service"
    assert not (own_store / "records/coresets/two/manifest.json").exists()
    service = Command(own_store)
    try:
        assert "shown once" not in service.said
        for job in (first, second):
            assert finished(service.web, job["id"])["state"] == DONE
        while service.web.get("/readyz").status_code == 503:
            time.sleep(0.2)
        assert service.web.get("/v1/pins").json()["counts"] == {"pinned": 0, "banned": 1}
        near = service.web.get(f"/v1/images/{make['identity'](3)}/neighbours").json()["items"]
        assert len(near) == 10
    finally:
        service.stop()
    for name, seed in (("one", 5), ("two", 9)):
        make["pick"](own_store, **{**KEYS, "name": f"expected-{name}", "seed": seed})
        parts = [
            (root / "part-00000.parquet").read_bytes()
            for root in (own_store / f"coresets/expected-{name}", own_store / f"coresets/{name}")
        ]
        assert parts[0] == parts[1]
    assert verify_store(str(own_store)).sound
    names = [path.name for path in (tmp_path / "cache").rglob("*")]
    assert not [name for name in names if name.endswith(".tmp")]


def test_a_queue_is_read_back_in_its_order(tmp_path, make):
    store = Store(str(tmp_path))
    jobs = Jobs(store, None, lambda: None)
    jobs.close()
    values = {"name": "x", "request": {}, "created": "2025-01-01T00:00:00Z"}
    for number, state in (("1", "done"), ("2", "failed")):
        text = json.dumps({"id": f"j{number}", "state": state, **values}).encode()
        store.storage.write(f"service/jobs/j{number}.json", text)
    again = Jobs(store, None, lambda: None)
    try:
        assert [job.id for job in again.latest()] == ["j2", "j1"]
        assert again.counts()["done"] == 1
        with pytest.raises(Problem, match="no job 'j3'"):
            again.get("j3")
        with pytest.raises(Problem, match="is already done"):
            again.cancel("j1")
    finally:
        again.close()
