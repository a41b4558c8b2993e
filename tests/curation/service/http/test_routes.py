"""Every route is declared, in the OpenAPI document, and known to the client and the explorer."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from echostill.curation import connect
from echostill.curation.client import Client
from echostill.curation.service.data.state import State
from echostill.curation.service.http.app import create_api
from echostill.curation.service.http.models.base import Answer, Count
from echostill.curation.service.http.openapi import openapi_text
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import encode_png

pytestmark = pytest.mark.slow

EXPLORER = Path(__file__).resolve().parents[4] / "explorer"
GENERATE = "run .venv/bin/python explorer/make_openapi.py"
SIGNED = {"author": "anna", "reason": "a test"}


def refused(call, argument):
    with pytest.raises(UsageError):
        call(argument)


# One call for every method of the client; together they reach every route but these.
CALLS = {
    "pool": lambda client, values: client.pool(),
    "coresets": lambda client, values: client.coresets(),
    "coreset": lambda client, values: client.coreset("default"),
    "stats": lambda client, values: client.stats("default"),
    "samples": lambda client, values: list(client.samples("default", selected="any")),
    "table": lambda client, values: client.table("default"),
    "export": lambda client, values: client.export("default", str(values["folder"] / "a.csv")),
    "compare": lambda client, values: client.compare("default", "spread"),
    "clusters": lambda client, values: client.clusters(),
    "cluster": lambda client, values: client.cluster(1),
    "image": lambda client, values: client.image(values["image_id"]),
    "why": lambda client, values: client.why(values["image_id"]),
    "find": lambda client, values: client.find("scan_0012"),
    "resolve": lambda client, values: client.resolve("scan_0012.png"),
    "look_up": lambda client, values: client.look_up(rows=[0, 3], ids=[values["image_id"]]),
    "thumbnail": lambda client, values: client.thumbnail(values["image_id"]),
    "neighbours": lambda client, values: [
        client.neighbours(values["image_id"]),
        refused(client.neighbours, values["folder"] / "upload.png"),  # there is no teacher
    ],
    "map": lambda client, values: client.map(),
    "views": lambda client, values: client.views(),
    "sql": lambda client, values: client.sql("select 1"),
    "export_sql": lambda client, values: client.export_sql(
        "select 1", str(values["folder"] / "b.csv")
    ),
    "pins": lambda client, values: client.pins(history=True),
    "pin": lambda client, values: values.update(
        pin=client.pin([values["image_id"]], **SIGNED)["id"]
    ),
    "unpin": lambda client, values: client.unpin(values["pin"], **SIGNED),
    "ban": lambda client, values: client.unpin(
        client.ban([values["image_id"]], **SIGNED)["id"], **SIGNED
    ),
    "review": lambda client, values: values.update(
        frame=next(client.review(sort="-score"))["image_id"]
    ),
    "review_picture": lambda client, values: client.review_picture(values["frame"]),
    "decide": lambda client, values: client.decide("approve", [values["frame"]], **SIGNED),
    "selection": lambda client, values: client.selection(),
    "estimate": lambda client, values: client.estimate(budget=12),
    "pick": lambda client, values: values.update(
        job=client.pick("by-every-method", budget=12, clusters=4)["id"]
    ),
    "holdings": lambda client, values: client.holdings("coresets"),
    "rename": lambda client, values: client.rename("coresets/spread", "wide"),
    "delete": lambda client, values: client.delete("coresets/wide"),
    "jobs": lambda client, values: client.jobs(),
    "job": lambda client, values: client.job(values["job"]),
    "cancel": lambda client, values: refused(client.cancel, values["job"]),  # it is done
    "waste": lambda client, values: client.waste(),
    "collect": lambda client, values: refused(client.collect, ["coresets/default"]),  # is needed
    "withdrawals": lambda client, values: client.withdrawals(),
    "preview_withdrawal": lambda client, values: client.preview_withdrawal("group", "clip3"),
    "withdraw": lambda client, values: client.withdraw("group", "clip3", reason="consent"),
    "finish_withdrawal": lambda client, values: refused(  # it is done
        lambda _: client.finish_withdrawal(), None
    ),
    "close": lambda client, values: None,
}
NOT_IN_CLIENT = {
    ("GET", "/healthz"): "for process managers",
    ("GET", "/readyz"): "for load balancers",
    ("GET", "/metrics"): "for Prometheus",
}
NOT_IN_EXPLORER = {
    **NOT_IN_CLIENT,
    ("GET", "/v1/coresets/{name}"): "the list of coresets and `stats` show what it needs",
    ("GET", "/v1/coresets/{name}/export"): "files are for scripts",
    ("GET", "/v1/jobs/{job_id}"): "it shows the list of all jobs",
    ("POST", "/v1/neighbours"): "it has no uploads",
    ("POST", "/v1/sql"): "it has no queries",
    ("GET", "/v1/sql/views"): "it has no queries",
}


def operations_of(document):
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def without_defaults(schema):
    """Leave out `additionalProperties: true`, the default, which older pydantic does not write."""
    if isinstance(schema, dict):
        return {
            key: without_defaults(value)
            for key, value in schema.items()
            if not (key == "additionalProperties" and value is True)
        }
    return [without_defaults(item) for item in schema] if isinstance(schema, list) else schema


def test_the_document_of_the_explorers_types_is_the_services():
    found = json.loads((EXPLORER / "openapi.json").read_text())
    document = json.loads(openapi_text(create_api()))
    found["info"].pop("version"), document["info"].pop("version")
    assert without_defaults(found) == without_defaults(document), GENERATE


def test_every_answer_has_a_schema_or_a_media_type(make):
    operations = operations_of(create_api().openapi())
    assert set(operations) == set(make["operations"])
    for name, operation in operations.items():
        responses = operation["responses"]
        assert responses["default"]["content"] == {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        }
        for status, response in responses.items():
            if status == "304":
                continue
            assert response["content"], name
            for media_type, content in response["content"].items():
                schema = content["schema"]
                is_json = media_type in ("application/json", "application/problem+json")
                binary = schema == {"type": "string", "format": "binary"}
                assert binary != is_json, name
                assert schema.keys() == {"$ref"} or binary, name


def test_examples_fit_their_models(make):
    found = [
        (model, example)
        for model in Answer.__subclasses__()
        for example in (model.model_config.get("json_schema_extra") or {}).get("examples", [])
    ]
    assert len(found) >= 3
    for model, example in found:
        make["check_json"](model, json.dumps(example))


def test_a_wrong_answer_is_found(make):
    """The checks of this suite fail on a missing, a further and a mistyped member."""
    count = {"value": "liver", "images": 3}
    make["check_json"](Count, json.dumps(count))
    for wrong in ({"value": "liver"}, {**count, "more": 1}, {**count, "images": "3"}):
        with pytest.raises((AssertionError, ValueError)):
            make["check_json"](Count, json.dumps(wrong))


def test_the_client_knows_every_route(own_store, own_cache, make, tmp_path):
    running = make["running"](own_store)
    reached = set()

    def note(response):
        operation = make["operation_of"](response.request)
        assert operation is not None, f"{response.request.url} is no route"
        reached.add(operation)
        make["check_answer"](response)

    named = [name for kind in Client.__mro__[:-1] for name in vars(kind)]
    public = {name for name in named if not name.startswith("_")}
    assert public == set(CALLS)
    (tmp_path / "upload.png").write_bytes(encode_png(np.zeros((20, 20), dtype=np.uint8)))
    values = {"image_id": make["identity"](12), "folder": tmp_path}
    with connect(running.live.url, make["token"]) as client:
        client._service.http.event_hooks = {"response": [note]}
        for call in CALLS.values():
            call(client, values)
    running.stop()
    assert not reached & set(NOT_IN_CLIENT)
    assert reached | set(NOT_IN_CLIENT) == set(make["operations"])


def test_the_explorer_knows_every_route(make):
    methods = {"get": "GET", "post": "POST", "remove": "DELETE"}
    text = (EXPLORER / "src" / "api.ts").read_text()
    routes = re.findall(r'^  \w+: (get|post|remove)\("(/[^"]*)"\),$', text, re.MULTILINE)
    reached = {(methods[method], path) for method, path in routes}
    assert len(reached) == len(routes) == text.count('"/v1/')
    assert not reached & set(NOT_IN_EXPLORER)
    assert reached | set(NOT_IN_EXPLORER) == set(make["operations"])
    others = [path for path in (EXPLORER / "src").glob("*.ts*") if path.name != "api.ts"]
    for path in others:
        if path.name != "service.d.ts":
            assert "v1/" not in path.read_text(), f"{path.name} does not use api.ts"


def test_answers_of_a_pool_that_is_not_scored(tmp_path, make):
    """The hook of the client checks each of them; here is where most members are null."""
    store = make["write_store"](tmp_path / "store")
    store.scores().delete("")
    store.quarantine("score").delete("")
    running = make["running"](tmp_path / "store")
    with running.live.client() as web:
        image_id = make["identity"](3)
        assert web.get("/v1/pool").json()["dimension"] is None
        assert web.get("/v1/coresets").json() == {"items": []}
        found = web.get(f"/v1/images/{image_id}").json()
        assert (found["scores"], found["coreset"]) == (None, None)
        assert found["why"]["text"] == "There is no coreset yet: pick one."
        sample = web.get("/v1/images", params={"q": image_id}).json()["items"][0]
        assert (sample["selected"], sample["cluster"], sample["pin"]) == (None, None, None)
        assert web.get("/v1/map").status_code == 409
        assert web.get(f"/v1/images/{image_id}/neighbours").status_code == 409
        assert web.get("/v1/sql/views").status_code == 200
        assert web.post("/v1/coresets", json={"name": "a", "budget": 5}).status_code == 422
    running.stop()


def test_answers_while_the_store_is_prepared(tmp_path, make, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where nothing is prepared
    make["write_store"](tmp_path / "store")
    monkeypatch.setattr(State, "_prepare", lambda self: None)
    running = make["running"](tmp_path / "store", wait=False)
    with running.live.client() as web:
        answer = web.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "starting")
        refused = web.get("/v1/pool")
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
    running.stop()


def test_the_answers_of_a_balanced_coreset(own_store, make):
    make["pick"](own_store, name="balanced", balance="organ")
    running = make["running"](own_store)
    with running.live.client() as web:
        for row in (0, 1, 17, 239):
            found = web.get(f"/v1/images/{make['identity'](row)}", params={"coreset": "balanced"})
            assert found.status_code == 200
        for path in ("", "/stats", "/samples?selected=any&limit=500"):
            assert web.get(f"/v1/coresets/balanced{path}").status_code == 200
    running.stop()
