"""Frames held back for review, over HTTP: listed, filtered, shown, decided on."""

import pytest

from echostill.curation.deidentification.decisions import approved_pixels
from echostill.platform.imaging.images import decode_staged
from echostill.platform.tables.store import Store

pytestmark = pytest.mark.slow
SIGNED = {"author": "R. Reader", "reason": "scale marks, no text"}


@pytest.fixture
def service(own_store, make):
    running = make["running"](own_store)
    with running.live.client() as web:
        yield web
    running.stop()


@pytest.fixture
def frames(service):
    """Ids in the order of the table."""
    return [row["image_id"] for row in shown(service, sort="image_id")["items"]]


def shown(service, **query):
    answer = service.get("/v1/review", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def decide(service, decision, status=201, **body):
    answer = service.post("/v1/review/decisions", json={"decision": decision, **SIGNED, **body})
    assert answer.status_code == status, answer.text
    return answer.json()


def states(service):
    return {row["image_id"]: row["state"] for row in shown(service)["items"]}


def test_filters_order_and_pages(service, frames):
    everything = shown(service, sort="-score", limit=500)
    assert [row["image_id"] for row in everything["items"]] == frames
    assert (everything["total"], everything["held_back"], everything["next"]) == (6, 6, None)
    counts = {
        name: {count["value"]: count["images"] for count in found}
        for name, found in everything["facets"].items()
    }
    assert counts["reason"] == {"text": 5, "failed: ValueError": 1}
    assert counts["organ"] == {"liver": 3, "heart": 3}
    assert counts["group_id"] == {"study0": 2, "study1": 2, "study2": 2}
    assert counts["state"] == {"open": 6}

    liver = shown(service, organ="liver", sort="score")
    assert [row["image_id"] for row in liver["items"]] == [frames[4], frames[2], frames[0]]
    # A facet counts what its other values would show, and follows the other filters.
    assert {count["value"]: count["images"] for count in liver["facets"]["organ"]} == {
        "liver": 3,
        "heart": 3,
    }
    assert {count["images"] for count in liver["facets"]["group_id"]} == {1}
    assert shown(service, organ=["liver", "heart"], reason="text")["total"] == 5
    assert [row["image_id"] for row in shown(service, most=0.55)["items"]] == frames[4:]
    assert shown(service, least=0.65)["total"] == 3

    first = shown(service, sort="image_id", limit=4)
    rest = shown(service, sort="image_id", limit=4, offset=first["next"])
    assert [row["image_id"] for row in first["items"] + rest["items"]] == frames
    assert rest["next"] is None
    assert service.get("/v1/review", params={"sort": "width"}).status_code == 400


def test_pictures_are_shown_and_kept_by_nobody(service, frames, make):
    answer = service.get(f"/v1/review/{frames[0]}/picture")
    assert answer.headers["cache-control"] == "no-store"
    assert (decode_staged(answer.content) == make["picture"](0)).all()
    for name in (frames[5], "0" * 32, "..%2FREAD-ME"):
        assert service.get(f"/v1/review/{name}/picture").status_code == 404


def test_the_latest_decision_counts(service, frames, own_store):
    assert decide(service, "approve", images=frames[:3]) == {"decided": 3, "left": []}
    assert decide(service, "reject", images=frames[1:2])["decided"] == 1
    assert decide(service, "undo", images=frames[2:3])["decided"] == 1
    expected = dict.fromkeys(frames, "open")
    assert states(service) == {**expected, frames[0]: "approved", frames[1]: "rejected"}
    row = shown(service, state="approved")["items"][0]
    assert (row["decided_by"], row["decided_reason"]) == tuple(SIGNED.values())
    assert list(approved_pixels(Store(str(own_store)))) == [frames[0]]  # as ingest reads it


def test_a_whole_group_at_once(service, frames):
    group = {"group_id": ["study2"], "frames": 2}
    found = decide(service, "approve", filter=group)
    assert found == {"decided": 1, "left": [frames[5]]}  # it could not be cleaned
    assert states(service)[frames[4]] == "approved"
    decide(service, "reject", filter={"group_id": ["study2"], "state": ["open"], "frames": 1})
    assert states(service)[frames[5]] == "rejected"


def test_what_was_not_seen_is_not_decided_on(service, frames):
    before = states(service)
    found = decide(service, "approve", 409, filter={"organ": ["liver"], "frames": 2})
    assert "shows 3 frames now, not 2" in found["detail"]
    decide(service, "approve", 404, images=[*frames[:2], "f" * 32])
    decide(service, "approve", 422)
    decide(service, "approve", 422, images=frames[:1], filter={"frames": 6})
    decide(service, "approve", 422, images=frames[:1], reason="")
    decide(service, "burn", 422, images=frames[:1])
    assert states(service) == before


def test_nothing_held_back_is_an_empty_list(tmp_path, make):
    make["write_store"](tmp_path / "store")
    running = make["running"](tmp_path / "store")
    with running.live.client() as web:
        found = shown(web)
        assert (found["items"], found["total"], found["held_back"]) == ([], 0, 0)
        assert set(map(len, found["facets"].values())) == {0}
    running.stop()
