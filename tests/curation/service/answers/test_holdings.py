"""Results listed, deleted and renamed: over HTTP, and by the client."""

import json

import pytest

from echostill.curation import connect
from echostill.curation.service.answers.holdings import delete_holding, rename_holding
from echostill.curation.service.data.derived import derived_folder
from echostill.curation.service.data.state import State
from echostill.curation.service.problems import Problem
from echostill.platform.errors import UsageError
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.holdings import holdings
from echostill.platform.tables.store import Store, finish_run
from echostill.platform.tables.verify import verify_store


def train(store, coreset, name):
    """A run that was made from a coreset."""
    run = store.run(name)
    wanted = Fingerprint({"seed": 0}, "1", {}, {"coreset": store.open_coreset(coreset).digest})
    run.write("model.safetensors", b"weights")
    finish_run(run, stage="distill", files=["model.safetensors"], fingerprint=wanted)
    run.write("fingerprint.json", json.dumps(wanted.as_dict()).encode())


@pytest.mark.slow
def test_results_are_listed_deleted_and_renamed_by_the_client(own_store, make):
    store = Store(str(own_store))
    train(store, "spread", "student-0")
    running = make["running"](own_store)
    with connect(running.live.url, make["token"]) as client, running.live.client() as web:
        found = client.holdings()
        assert found == [{"place": one.place, **one.as_dict()} for one in holdings(store)]
        assert [item["place"] for item in client.holdings("runs")] == ["runs/student-0"]
        spread = next(item for item in found if item["name"] == "spread")
        assert spread["used_by"] == ["runs/student-0"]
        assert spread["bytes"] == sum(store.coreset("spread").sizes().values()) > 1000

        # The dry run tells what it would be, and what was made from it; nothing goes.
        assert client.delete("coresets/spread", dry_run=True) == {
            "deleted": False, "result": spread
        }  # fmt: skip
        with pytest.raises(UsageError, match="runs/student-0 was made from 'coresets/spread'"):
            client.delete("coresets/spread")
        assert client.holdings() == found

        # A renamed coreset answers under its new name at once, and is still what the run used.
        before = client.sql("from coreset order by image_id", coreset="spread")
        renamed = client.rename("coresets/spread", "wide")
        assert (renamed["place"], renamed["used_by"]) == ("coresets/wide", ["runs/student-0"])
        assert {item["name"] for item in client.coresets()} == {"default", "wide"}
        after = client.sql("from coreset order by image_id", coreset="wide")
        assert after["image_id"].equals(before["image_id"])
        assert web.get("/v1/coresets/spread/stats").status_code == 404
        for name, words in (("default", "exists"), ("../x", "name"), ("wide", "exists")):
            with pytest.raises(UsageError, match=words):
                client.rename("coresets/wide", name)
        with pytest.raises(UsageError, match="cannot be renamed"):
            client.rename("runs/student-0", "mine")

        # Deleted is deleted: from the list, the views and the mapped files.
        mapped = list(derived_folder(store).rglob("*wide*"))
        assert mapped
        assert client.delete("coresets/wide", force=True)["deleted"]
        assert not any(path.exists() for path in mapped)
        assert client.sql("select distinct coreset from coresets")["coreset"].to_pylist() == [
            "default"
        ]
        with pytest.raises(UsageError, match="no 'coresets/wide'"):
            client.delete("coresets/wide")
        assert [item["place"] for item in client.holdings()] == [
            "coresets/default",
            "runs/student-0",
        ]
        assert client.holdings()[1]["made_from"] == {"coreset": "(not in the store)"}
        client.delete("runs/student-0")
        assert client.coreset("default")["images"] == 236
    running.stop()
    assert verify_store(str(own_store)).sound


def test_what_is_at_work_stays(own_store):
    state = State(str(own_store))
    state.refresh()
    for call in (
        lambda: delete_holding(
            state, "coresets/spread", picking={"spread"}, dry_run=False, force=True
        ),
        lambda: rename_holding(state, "coresets/spread", "other", {"spread"}),
        lambda: rename_holding(state, "coresets/spread", "other", {"other"}),
    ):
        with pytest.raises(Problem, match="a job is picking") as caught:
            call()
        assert caught.value.status == 409
    assert set(Store(str(own_store)).coreset_names()) == {"default", "spread"}
