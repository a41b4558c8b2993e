"""Images are withdrawn through a running service, by the rules of the command."""

import json
import time

import pytest

from echostill.curation import connect
from echostill.curation.service.jobs.withdrawals import Withdrawals
from echostill.curation.withdrawal.request import WithdrawalRequest
from echostill.curation.withdrawal.withdrawing import withdraw
from echostill.platform.errors import UsageError
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store
from echostill.platform.tables.verify import verify_store
from echostill.platform.withdrawal.state import PENDING

pytestmark = pytest.mark.slow

GROUP, REASON = "clip5", "consent was withdrawn"
ASKED = {"kind": "group", "value": GROUP, "reason": REASON}


def files_of(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def wait(web, state):
    until = time.monotonic() + 120
    while (current := web.get("/v1/withdrawals").json()["current"])["state"] == "running":
        assert time.monotonic() < until
        time.sleep(0.1)
    assert current["state"] == state, current["message"]
    return current


def test_a_group_is_looked_at_withdrawn_and_forgotten(own_store, own_cache, make):
    running = make["running"](own_store)
    members = [make["identity"](row) for row in range(30, 36)]
    planned = withdraw(str(own_store), WithdrawalRequest("group", GROUP), dry_run=True)
    before = files_of(own_store)
    with running.live.client() as web:
        assert web.get(f"/v1/images/{members[0]}/thumbnail").status_code == 200
        shown = web.post("/v1/withdrawals/preview", json=ASKED).json()
        assert shown["counts"] == planned.counts == {**shown["counts"], "images": 6, "groups": 1}
        assert shown["rows"] == planned.rows
        assert (shown["finished"], "would remove 6 image(s)" in shown["text"]) == (False, True)
        counts = {name: shown["counts"][name] for name in ("images", "in_quarantine")}

        # What is wrong changes nothing.
        wrong = [
            (404, {**ASKED, **counts, "value": "clip5x"}, "Did you mean 'clip5'"),
            (404, {**ASKED, **counts, "kind": "image"}, "nothing of the image"),
            (422, {**ASKED, **counts, "kind": "patient"}, "needs the key"),
            (422, {**ASKED, **counts, "reason": " "}, "needs a reason"),
            (422, {**ASKED, **counts, "reason": f"{GROUP} asked"}, "reword it"),
            (409, {**ASKED, **counts, "images": 5}, "images: 6 would go, not 5"),
            (422, ASKED, "images"),
        ]
        for status, body, words in wrong:
            answer = web.post("/v1/withdrawals", json=body)
            assert (answer.status_code, words in answer.text) == (status, True), answer.text
        assert web.post("/v1/withdrawals/finish").status_code == 409
        with running.live.client(token="") as stranger:
            assert stranger.post("/v1/withdrawals", json={**ASKED, **counts}).status_code == 401
        assert files_of(own_store) == before

        begun = web.post("/v1/withdrawals", json={**ASKED, **counts})
        assert (begun.status_code, begun.json()["state"]) == (202, "running")
        assert web.post("/v1/withdrawals", json={**ASKED, **counts}).status_code == 409
        assert wait(web, "done")["message"] == "w-000001"
        for member in members:  # at once: either it knows nothing yet, or all but these
            assert web.get(f"/v1/images/{member}/thumbnail").status_code in (404, 503)
        [receipt] = web.get("/v1/withdrawals").json()["items"]
        assert receipt["finished"]
        assert {**receipt, "finished": False, "at": "", "text": ""} == {
            **shown, "at": "", "text": ""
        }  # fmt: skip
        until = time.monotonic() + 120
        while web.get("/readyz").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert web.get(f"/v1/images/{members[0]}").status_code == 404
        assert web.get("/v1/pool").json()["images"] == 234
        again = web.post("/v1/withdrawals/preview", json=ASKED)
        assert again.status_code == 404
    running.stop()
    found = {name for name, data in files_of(own_store).items() if members[0].encode() in data}
    assert found == set()
    assert verify_store(str(own_store)).sound


def test_an_interrupted_withdrawal_is_finished_by_the_service(
    own_store, own_cache, make, monkeypatch
):
    running = make["running"](own_store)
    write, left = Storage.write, [4]

    class Killed(BaseException):
        pass

    def killed(storage, name, data):
        left[0] -= 1
        if left[0] < 0 and Store(str(own_store), withdrawing=True).storage.exists(PENDING):
            raise Killed
        write(storage, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", killed)
        with pytest.raises(Killed):
            withdraw(str(own_store), WithdrawalRequest("group", GROUP), reason=REASON)
    with connect_anyway(running.live.url, make["token"]) as client:
        assert client.withdrawals()["current"]["state"] == "interrupted"
        with pytest.raises(UsageError, match="finish it first"):
            client.preview_withdrawal("group", "clip6")
        receipt = client.finish_withdrawal()
        assert (receipt["counts"]["images"], receipt["finished"]) == (6, True)
    running.stop()
    assert verify_store(str(own_store)).sound


def connect_anyway(url, token):
    """A client of a service that cannot answer about its pool."""
    from echostill.curation.client import Client

    return Client(url, token)


def test_what_is_not_needed_is_listed_and_deleted(own_store, make):
    staged, unfinished = own_store / "cache" / "a.npy", own_store / "runs" / "student-1"
    for path in (staged, unfinished / "metrics.jsonl"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"0" * 10)
    running = make["running"](own_store)
    with connect(running.live.url, make["token"]) as client:
        listed = {item["place"]: item["bytes"] for item in client.waste()}
        assert listed == {"cache": 10, "runs/student-1": 10}
        with pytest.raises(UsageError, match="'coresets/default' is not"):
            client.collect(["cache", "coresets/default"])
        assert staged.exists()
        assert client.collect(["cache"]) == {"places": ["cache"], "bytes": 10}
        assert (staged.exists(), unfinished.exists()) == (False, True)
        assert [item["place"] for item in client.waste()] == ["runs/student-1"]
    running.stop()


def test_the_process_is_told_on_its_standard_input(tmp_path, monkeypatch):
    """Arguments of a process can be read by others; a patient's id and the key are not in them."""
    from echostill.curation.service import children

    seen = {}

    class Child:
        returncode = 1
        stdout = iter(())

        class stdin:
            write = staticmethod(lambda text: seen.update(given=json.loads(text)))
            flush = staticmethod(lambda: None)

        def wait(self):
            seen["ended"] = True

    def start(module, *arguments, outlives):
        seen.update(arguments=arguments, outlives=outlives)
        return Child()

    monkeypatch.setattr(children, "start", start)
    withdrawals = Withdrawals(Store(str(tmp_path)), b"the key", lambda: None)
    withdrawals.start(WithdrawalRequest("patient", "anna"), REASON)
    until = time.monotonic() + 10
    while withdrawals.progress.state == "running" and time.monotonic() < until:
        time.sleep(0.01)
    assert seen["arguments"] == (Store(str(tmp_path)).root,)
    assert seen["outlives"]
    assert seen["given"]["request"]["value"] == "anna"
    assert bytes.fromhex(seen["given"]["key"]) == b"the key"
    assert withdrawals.progress.state == "failed"
