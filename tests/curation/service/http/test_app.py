"""The interface as docs/api.md states it, over a real port."""

import csv
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echostill.curation.selection.core import SelectionSettings
from echostill.curation.selection.explain.explain import explain
from echostill.platform.imaging.images import decode_image
from echostill.platform.tables.store import Store

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "api.md"
PROBLEM = "application/problem+json"


def got(web, path, status=200, **query):
    answer = web.get(path, params=query)
    assert answer.status_code == status, answer.text
    if status >= 400:
        assert answer.headers["content-type"] == PROBLEM
        body = answer.json()
        assert body["status"] == status
        assert body["type"].startswith("urn:echostill:problem:")
        assert body["detail"]
        return body
    return answer.json()


def test_health_wants_no_token_and_the_rest_does(live, web):
    with live.client(token=None) as stranger:
        assert stranger.get("/healthz").json() == {"status": "ok"}
        assert stranger.get("/readyz").json() == {"status": "ok"}
        assert stranger.get("/").status_code == 200
        operations = web.get("/v1/openapi.json").json()["paths"]
        assert len(operations) >= 22
        for path, methods in operations.items():
            for method in methods:
                address = re.sub(r"{\w+}", "x", path)
                for headers in (
                    {},
                    {"Authorization": "Bearer wrong"},
                    {"Authorization": "Basic x"},
                ):
                    answer = stranger.request(method.upper(), address, headers=headers)
                    if path in ("/healthz", "/readyz"):
                        assert answer.status_code == 200
                        continue
                    assert answer.status_code == 401, (method, address)
                    assert answer.headers["www-authenticate"].startswith("Bearer")
                    assert answer.headers["content-type"] == PROBLEM
        assert stranger.get("/v1/openapi.json").status_code == 401
        assert stranger.get("/nothing").status_code == 401
        assert stranger.post("/").status_code == 401


def test_every_documented_path_exists_and_every_path_is_documented(web):
    text = DOCUMENT.read_text()
    documented = set(
        re.findall(r"(?:GET|POST|DELETE) (/(?:v1/[\w/{}]+|healthz|readyz|metrics))", text)
    )
    paths = web.get("/v1/openapi.json").json()["paths"]
    known = {re.sub(r"{\w+}", "{}", path) for path in paths}
    assert {re.sub(r"{\w+}", "{}", path) for path in documented} - {"/v1/openapi"} <= known
    for path in paths:
        named = path.split("{")[0].rstrip("/")
        assert named in text, path


def test_the_pool(web):
    found = got(web, "/v1/pool")
    assert (found["images"], found["scored"], found["dimension"]) == (240, 236, 64)
    assert found["quarantined"] == {"ingest": 0, "score": 4}
    assert found["index"]["state"] == found["map"]["state"] == "ready"
    assert {item["value"] for item in found["organs"]} == {"liver", "heart", "lung", ""}
    assert {"default", "spread"} <= set(found["coresets"])


def test_coresets_and_their_details(web):
    items = got(web, "/v1/coresets")["items"]
    assert {"default", "spread"} <= {item["name"] for item in items}
    found = got(web, "/v1/coresets/spread")
    assert found["budget"] == 60
    assert found["configuration"]["max_per_group"] == 2
    assert sum(part["rows"] for part in found["files"]) == 236
    wrong = got(web, "/v1/coresets/defalt", 404)
    assert wrong["type"].endswith("unknown-coreset")
    assert "Did you mean 'default'?" in wrong["detail"]


def test_samples_by_pages(web):
    seen, cursor = [], None
    while True:
        query = {"limit": 25, "sort": "dual_rank", **({"cursor": cursor} if cursor else {})}
        found = got(web, "/v1/coresets/default/samples", **query)
        seen += found["items"]
        assert found["total"] == 60
        cursor = found["next"]
        if cursor is None:
            break
    assert len(seen) == 60 == len({item["image_id"] for item in seen})
    assert all(item["selected"] for item in seen)
    ranks = [item["dual_rank"] for item in seen]
    assert ranks == sorted(ranks)
    assert set(seen[0]) == set(json.loads(_example("samples"))["items"][0])
    hearts = got(web, "/v1/coresets/default/samples", selected="any", organ="heart", limit=500)
    assert {item["organ"] for item in hearts["items"]} == {"heart"}
    wrong = got(web, "/v1/coresets/default/samples", 400, sort="distence")
    assert "Did you mean 'distance'?" in wrong["detail"]
    assert got(web, "/v1/coresets/default/samples", 422, limit=501)["errors"][0]["where"] == "limit"


def _example(name):
    section = DOCUMENT.read_text().split(f"/{name}\n")[1]
    return re.search(r"```json\n(.*?)```", section, re.DOTALL).group(1)


def test_stats_have_the_documented_members(web):
    found = got(web, "/v1/coresets/default/stats")
    assert set(found) == set(json.loads(_example("stats")))
    assert found["selected"] == 60


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("selected", ["true", "any"])
def test_exports_hold_the_coreset(web, live, kind, selected):
    answer = web.get("/v1/coresets/default/export", params={"format": kind, "selected": selected})
    assert f'filename="default.{kind}"' in answer.headers["content-disposition"]
    if kind == "parquet":
        rows = pq.read_table(io.BytesIO(answer.content)).to_pylist()
    elif kind == "csv":
        rows = list(csv.DictReader(io.StringIO(answer.text)))
    else:
        rows = [json.loads(line) for line in answer.text.splitlines()]
    table = Store(str(live.root)).open_coreset("default").read().sort_by("image_id").to_pylist()
    expected = [row for row in table if selected == "any" or row["selected"]]
    assert [row["image_id"] for row in rows] == [row["image_id"] for row in expected]
    assert [row["reason"] for row in rows] == [row["reason"] for row in expected]
    assert rows[0]["source"].startswith("ward ")
    if kind != "csv":
        assert {**rows[0]} == {**rows[0], **expected[0]}


def test_an_image_says_why(web, live, state):
    store = Store(str(live.root))
    table = store.open_coreset("default").read()
    settings = SelectionSettings(budget=60, clusters=8)
    for image_id in table["image_id"].to_pylist()[:3]:
        found = got(web, f"/v1/images/{image_id}", coreset="default")
        row = state.catalogue.ids.find(image_id)
        assert found["image"] == {"row": row, **state.catalogue.image(row)}
        assert found["why"]["text"] == explain(
            image_id, table, state.catalogue.image(row), settings
        )
        assert found["coreset"]["reason"] in found["why"]["text"]
        assert found["scores"].keys() >= {"gradient_mean", "gradient_std", "reconstruction_error"}


def test_a_quarantined_image_says_where_it_went(web, make):
    found = got(web, f"/v1/images/{make['identity'](239)}")
    assert found["image"]["source"].endswith("scan_0239.png")
    assert found["coreset"] is None
    assert "quarantine at score" in found["why"]["text"]


def test_an_unknown_image_has_a_hint(web, make):
    image_id = make["identity"](5)
    wrong = got(web, f"/v1/images/{image_id[:-1]}f", 404)
    assert f"Did you mean '{image_id}'?" in wrong["detail"]


def test_images_are_searched(web, make):
    found = got(web, "/v1/images", q=make["identity"](7)[:8])
    assert [item["image_id"] for item in found["items"]] == [make["identity"](7)]
    found = got(web, "/v1/images", q="scan_000", limit=5)
    assert len(found["items"]) == 5
    got(web, "/v1/images", 400, q="abc")


def test_rows_and_ids_are_looked_up(web, make):
    body = {"rows": [3, 0, 3], "ids": [make["identity"](9)]}
    items = web.post("/v1/images/lookup", json=body).json()["items"]
    assert [item["row"] for item in items][:3] == [3, 0, 3]
    assert items[3]["image_id"] == make["identity"](9)
    held = web.post("/v1/images/lookup", json={"ids": [make["identity"](238)]}).json()["items"]
    assert held[0]["cluster"] is None
    assert web.post("/v1/images/lookup", json={"rows": [240]}).status_code == 404
    assert web.post("/v1/images/lookup", json={"rows": [-1]}).status_code == 404
    assert web.post("/v1/images/lookup", json={"rows": [0] * 1001}).status_code == 422


def test_thumbnails_are_the_pictures_and_are_kept(web, make):
    path = f"/v1/images/{make['identity'](4)}/thumbnail"
    answer = web.get(path, params={"format": "png", "size": 1024})
    assert np.array_equal(decode_image(answer.content), make["picture"](4))
    assert answer.headers["content-type"] == "image/png"
    assert max(decode_image(web.get(path, params={"size": 20}).content).shape) == 20
    again = web.get(
        path,
        params={"format": "png", "size": 1024},
        headers={"If-None-Match": answer.headers["etag"]},
    )
    assert again.status_code == 304
    assert again.content == b""


def test_neighbours_by_id(web, live, make):
    own = make["features"]().astype(np.float64)
    for row in (0, 50):
        found = got(web, f"/v1/images/{make['identity'](row)}/neighbours", k=5)["items"]
        similarity = own @ own[row]
        similarity[[row, 236, 237, 238, 239]] = -1
        expected = {make["identity"](other) for other in np.argsort(-similarity)[:5]}
        assert len(expected & {item["sample"]["image_id"] for item in found}) >= 4
        assert found[0]["similarity"] == pytest.approx(similarity.max(), abs=0.02)
    path = f"/v1/images/{make['identity'](0)}/neighbours"
    for selected in ("true", "false"):
        found = got(web, path, k=20, selected=selected, coreset="default")["items"]
        assert {item["sample"]["selected"] for item in found} == {selected == "true"}
    others = got(web, path, k=20, same_group="false")["items"]
    assert all(item["sample"]["group_id"] != "clip0" for item in others)
    wrong = got(web, f"/v1/images/{make['identity'](239)}/neighbours", 409)
    assert "was not scored" in wrong["detail"]


def test_clusters_by_pages(web):
    every = got(web, "/v1/clusters", coreset="default")
    assert every["total"] == len(every["items"]) == 8
    assert sum(item["size"] for item in every["items"]) == 236
    first = got(web, "/v1/clusters", coreset="default", sort="-size", limit=5)
    second = got(web, "/v1/clusters", coreset="default", sort="-size", cursor=first["next"])
    sizes = [item["size"] for item in first["items"] + second["items"]]
    assert sizes == sorted((item["size"] for item in every["items"]), reverse=True)
    found = got(web, "/v1/clusters/2", coreset="default")
    assert found["members"][0]["cluster"] == 2
    assert "from 0 to 7" in got(web, "/v1/clusters/8", 404, coreset="default")["detail"]
    got(web, "/v1/clusters", 400, sort="colour")


def test_two_coresets_side_by_side(web, live):
    found = got(web, "/v1/compare", a="default", b="spread")
    store = Store(str(live.root))
    chosen = []
    for name in ("default", "spread"):
        table = store.open_coreset(name).read()
        chosen.append(set(table.filter(table["selected"])["image_id"].to_pylist()))
    assert found["both"] == len(chosen[0] & chosen[1])
    assert set(found["entered"]) == chosen[1] - chosen[0]
    assert set(found["left"]) == chosen[0] - chosen[1]
    assert set(found["by"]) == {"organ", "device", "cluster"}
    got(web, "/v1/compare", 404, a="default", b="none")
    got(web, "/v1/compare", 422, a="default")


def test_the_map_is_an_arrow_stream(web, state):
    answer = web.get("/v1/map", params={"coreset": "default"})
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table.schema.names == [
        "row",
        "x",
        "y",
        "organ",
        "device",
        "cluster",
        "rank",
        "selected",
        "pin",
    ]
    assert [str(kind) for kind in table.schema.types] == [
        "uint32",
        "float",
        "float",
        "uint16",
        "uint16",
        "int32",
        "float",
        "uint8",
        "int8",
    ]
    assert table.num_rows == 236
    organs = json.loads(table.schema.metadata[b"organs"])
    row = table.slice(17, 1).to_pylist()[0]
    assert organs[row["organ"]] == state.catalogue.image(row["row"])["organ"]
    assert sum(table["selected"].to_pylist()) == 60
    again = web.get(
        "/v1/map",
        params={"coreset": "default"},
        headers={"If-None-Match": answer.headers["etag"]},
    )
    assert again.status_code == 304
    some = pa.ipc.open_stream(web.get("/v1/map", params={"sample": 60}).content).read_all()
    assert 20 < some.num_rows < 120


def test_sql_as_json_and_as_arrow(web, state):
    query = "select organ, count(*) as images from pool where organ <> ? group by organ order by 1"
    body = {"sql": query, "parameters": [""]}
    found = web.post("/v1/sql", json=body).json()
    assert found["rows"] == [["heart", 60], ["liver", 60], ["lung", 60]]
    assert found["columns"][0] == {"name": "organ", "type": "VARCHAR"}
    assert (found["truncated"], found["elapsed_ms"] >= 0) == (False, True)
    cut = web.post("/v1/sql", json={"sql": "from scores", "limit": 7}).json()
    assert (len(cut["rows"]), cut["truncated"]) == (7, True)
    answer = web.post(
        "/v1/sql",
        json={"sql": "from coreset order by image_id", "coreset": "spread"},
        headers={"Accept": "application/vnd.apache.arrow.stream"},
    )
    table = pa.ipc.open_stream(answer.content).read_all()
    stored = Store(state.store.root).open_coreset("spread").read().sort_by("image_id")
    assert table.to_pylist() == stored.to_pylist()


def test_a_crowd_of_queries_is_answered_one_after_the_other(live):
    """A worker is given back though others wait for one: each of these takes milliseconds."""
    arrow = {"Accept": "application/vnd.apache.arrow.stream"}

    def ask(number):
        with live.client() as client:
            body = {"sql": "select count(*) as images from pool"}
            headers = arrow if number % 2 else None
            return [client.post("/v1/sql", json=body, headers=headers) for _ in range(6)]

    with ThreadPoolExecutor(24) as crowd:
        answers = [answer for some in crowd.map(ask, range(24)) for answer in some]
    assert {answer.status_code for answer in answers} == {200}


def test_sql_views_are_the_documented_ones(web):
    views = {view["name"]: view["columns"] for view in got(web, "/v1/sql/views")["items"]}
    assert {"pool", "scores", "coreset", "coresets", "quarantine"} <= set(views)
    names = [column["name"] for column in views["pool"]]
    assert "image" not in names
    assert "feature" not in [column["name"] for column in views["scores"]]
    for name, columns in views.items():
        found = web.post("/v1/sql", json={"sql": f"describe {name}", "limit": 100}).json()
        assert [row[:2] for row in found["rows"]] == [
            [column["name"], column["type"]] for column in columns
        ], name
    held = web.post("/v1/sql", json={"sql": "select count(*) from quarantine"}).json()
    assert held["rows"] == [[4]]
    every = web.post(
        "/v1/sql",
        json={"sql": "select count(*) from coresets where selected and coreset = 'spread'"},
    ).json()
    assert every["rows"] == [[60]]


def test_pins_are_added_shown_and_taken_back(web, make):
    images = [make["identity"](20), make["identity"](21)]
    signed = {"author": "anna", "reason": "typical"}
    made = web.post("/v1/pins", json={"action": "pin", "images": images, **signed})
    assert made.status_code == 201
    pin = made.json()
    assert (pin["kind"], pin["images"], pin["author"]) == ("image", 2, "anna")
    shown = got(web, f"/v1/images/{images[0]}")
    assert [item["id"] for item in shown["pins"]] == [pin["id"]]
    looked = web.post("/v1/images/lookup", json={"ids": images}).json()["items"]
    assert [item["pin"] for item in looked] == ["pin", "pin"]
    cluster = {"coreset": "default", "cluster": 1}
    ban = web.post("/v1/pins", json={"action": "ban", "cluster": cluster, **signed}).json()
    assert (ban["kind"], ban["cluster"]) == ("cluster", 1)
    size = got(web, "/v1/clusters/1", coreset="default")["size"]
    assert ban["images"] == size == got(web, "/v1/pins")["counts"]["banned"] + 0
    for item in (pin, ban):
        gone = web.request("DELETE", f"/v1/pins/{item['id']}", json=signed)
        assert gone.json()["removed"]["author"] == "anna"
    twice = web.request("DELETE", f"/v1/pins/{pin['id']}", json=signed)
    assert twice.status_code == 409
    assert web.request("DELETE", "/v1/pins/p-999999", json=signed).status_code == 404
    assert got(web, "/v1/pins")["items"] == []
    assert len(got(web, "/v1/pins", history="true")["items"]) == 2
    both = {"action": "pin", "images": images, "cluster": cluster, **signed}
    assert web.post("/v1/pins", json=both).status_code == 422
    assert web.post("/v1/pins", json={"action": "pin", **signed}).status_code == 422
    unsigned = {"action": "pin", "images": images, "author": "", "reason": "x"}
    assert web.post("/v1/pins", json=unsigned).status_code == 422


def test_metrics_count_routes_and_name_nobody(web, make):
    image_id = make["identity"](8)
    web.get(f"/v1/images/{image_id}")
    text = web.get("/metrics").text
    assert 'route="/v1/images/{image_id}"' in text
    assert "echostill_ready 1.0" in text
    assert image_id not in text


def test_the_answers_carry_the_headers_of_a_careful_server(web, live):
    for path in ("/v1/pool", "/", "/nothing"):
        headers = web.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers
        assert "set-cookie" not in headers
    policy = " ".join(web.get("/").headers["content-security-policy"].split())
    documented = re.search(r"policy of `/` is `(.*?)`", DOCUMENT.read_text(), re.DOTALL).group(1)
    assert policy == " ".join(documented.split())
