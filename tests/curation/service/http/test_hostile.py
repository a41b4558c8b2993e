"""Requests that mean harm: nothing is read, written or hung by them."""

import contextlib
import io
import json
import os
import socket
import struct
import time
import zlib

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

SECRET = "the-secret-of-this-machine"
SQL = [
    "select * from read_csv('{secret}')",
    "select * from read_csv_auto('{secret}')",
    "select * from read_text('{secret}')",
    "select * from read_blob('{secret}')",
    "select * from read_json('{secret}')",
    "select * from read_parquet('{pool}')",
    "select * from parquet_metadata('{pool}')",
    "select * from parquet_scan('{pool}')",
    "from '{secret}'",
    "from '{pool}'",
    'select * from "{pool}"',
    "select * from glob('/etc/*')",
    "select * from sniff_csv('{secret}')",
    "copy pool to '{target}'",
    "copy (select 1) to '{target}' (format csv)",
    "copy pool from '{secret}'",
    "with x as (copy (select 1) to '{target}') select * from x",
    "with x as (delete from pool returning *) select * from x",
    "with x as (insert into pool select * from pool returning *) select * from x",
    "with x as (update pool set organ = 'x' returning *) select * from x",
    "export database '{target}'",
    "import database '{target}'",
    "attach '{target}' as other",
    "attach ':memory:' as other",
    "detach memory",
    "use memory",
    "install httpfs",
    "load httpfs",
    "force install json from 'http://127.0.0.1:9/'",
    "select * from read_csv('http://127.0.0.1:9/x.csv')",
    "select * from read_csv('s3://bucket/x.csv')",
    "pragma database_list",
    "pragma show_tables",
    "pragma enable_profiling",
    "pragma memory_limit='100GB'",
    "set memory_limit='100GB'",
    "set global threads=64",
    "set enable_external_access=true",
    "set lock_configuration=false",
    "reset memory_limit",
    "call pragma_version()",
    "call duckdb_functions()",
    "create table t as select 1",
    "create view v as select 1",
    "create macro f(x) as x",
    "create secret (type s3)",
    "create or replace temp view pool as select 1",
    "drop view pool",
    "insert into pool values (1)",
    "delete from pool",
    "update pool set organ = 'x'",
    "alter table pool rename to x",
    "vacuum",
    "checkpoint",
    "begin transaction",
    "prepare p as select 1",
    "execute p",
    "explain analyze select 1",
    "select 1; select 2",
    "select 1; copy (select 1) to '{target}'",
    "select * from duckdb_settings()",
    "select * from duckdb_secrets()",
    "select * from duckdb_tables()",
    "select * from information_schema.tables",
    "select * from pg_catalog.pg_tables",
    "select * from pragma_table_info('pool')",
    "select * from sqlite_master",
    "select * from source_0_0",
    "select * from arrow_scan(1, 2, 3)",
    "select * from arrow_scan_dumb(1, 2, 3)",
    "select * from query('select 1')",
    "select * from query_table('pool')",
    "select * from (show all tables)",
    "select getenv('HOME')",
    "select current_setting('memory_limit')",
    "select getvariable('x')",
    "select nextval('x')",
    "select " + "(" * 20_000 + "1" + ")" * 20_000,
    "select " + "[" * 3000 + "]" * 3000,
    "select " + "1+" * 40_000 + "1",
    "",
    ";",
    "--",
    "select",
    "\x00",
    "select '\x00'; copy (select 1) to '{target}'",
]
SLOW = [
    "with recursive t(x) as (select 1 union all select x + 1 from t) select max(x) from t",
    "select count(*) from range(1000000000000)",
    "select count(*) from pool a, pool b, pool c, pool d, pool e where a.mean < b.mean",
    "select sum(a.range * b.range) from range(1000000) a, range(1000000) b",
]
HUGE = [
    "select list(range) from range(100000000000)",
    "select string_agg(repeat('x', 1000000), '') from range(100000)",
    "select repeat('x', 100000000) || range from range(5000)",
    "select a.source || b.source || c.source from pool a, pool b, pool c order by 1",
]
IDS = [
    "../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/secret",
    "....//....//secret",
    "%00",
    "a%00.png",
    "%ff%fe",
    "\u202e",
    "' or 1=1 --",
    "*",
    "?",
    "x" * 500,
    "-1",
    "{image_id}",
    "file:///etc/passwd",
]


def bomb(width, height):
    """A PNG that says it is huge, in a few bytes."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\x00" * 10**6)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def encoded(kind, size=(8, 8)):
    sink = io.BytesIO()
    Image.new("L", size).save(sink, format=kind)
    return sink.getvalue()


IMAGES = [
    (b"", "image/png"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"not an image", "image/jpeg"),
    (encoded("PNG", (64, 64))[:-40], "image/png"),
    (encoded("JPEG"), "image/png"),
    (encoded("PNG"), "image/jpeg"),
    (encoded("PNG"), "text/html"),
    (encoded("PNG"), ""),
    (encoded("GIF"), "image/gif"),
    (encoded("GIF"), "image/png"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "image/png"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "application/postscript"),
    (
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "image/svg+xml",
    ),
    (bomb(50_000, 50_000), "image/png"),
    (bomb(2**31 - 1, 2**31 - 1), "image/png"),
    (bomb(0, 0), "image/png"),
    (b"II*\x00" + b"\xff" * 64, "image/tiff"),
    (b"BM" + b"\xff" * 64, "image/bmp"),
]


@pytest.fixture(scope="module")
def trap(tmp_path_factory, live):
    """A file with a secret, and a place where nothing must appear."""
    folder = tmp_path_factory.mktemp("trap")
    (folder / "secret.csv").write_text(f"name\n{SECRET}\n")
    return {
        "secret": str(folder / "secret.csv"),
        "target": str(folder / "written"),
        "pool": str(live.root / "pool" / "part-00000.parquet"),
        "folder": folder,
    }


def files_of(root):
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module", autouse=True)
def nothing_changes(trap, live, web):
    """Whatever is asked here: the store and the trap stay as they are, and the service answers."""
    web.post("/v1/sql", json={"sql": "select 1"})
    before = files_of(live.root)
    yield
    assert files_of(live.root) == before
    assert {path.name for path in trap["folder"].iterdir()} == {"secret.csv"}
    assert web.get("/readyz").json() == {"status": "ok"}


def refused(answer, most=499):
    assert 400 <= answer.status_code <= most, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    assert SECRET not in answer.text
    return answer


def test_the_corpus_is_large_enough():
    assert len(SQL) + len(SLOW) + len(HUGE) + len(IDS) + len(IMAGES) + len(RAW) >= 140


@pytest.mark.parametrize("sql", SQL, ids=range(len(SQL)))
def test_sql_that_is_not_one_plain_select(web, trap, sql):
    for name in ("secret", "target", "pool"):
        sql = sql.replace("{" + name + "}", trap[name])
    refused(web.post("/v1/sql", json={"sql": sql, "timeout": 5}))


def test_sql_is_refused_as_arrow_as_well(web, trap):
    headers = {"Accept": "application/vnd.apache.arrow.stream"}
    body = {"sql": f"from '{trap['secret']}'"}
    refused(web.post("/v1/sql", json=body, headers=headers))


@pytest.mark.parametrize("sql", SLOW, ids=range(len(SLOW)))
def test_sql_without_end_is_ended(web, sql):
    answer = refused(web.post("/v1/sql", json={"sql": sql, "timeout": 0.3}))
    assert answer.status_code == 408
    assert answer.json()["type"].endswith("sql-timeout")


@pytest.mark.parametrize("sql", HUGE, ids=range(len(HUGE)))
def test_sql_that_needs_too_much_is_ended(web, sql):
    refused(web.post("/v1/sql", json={"sql": sql, "timeout": 5}))
    assert web.post("/v1/sql", json={"sql": "select 1"}).json()["rows"] == [[1]]


def test_a_huge_result_is_cut_off(web):
    body = {"sql": "select range, repeat('y', 1000) from range(10000000)", "limit": 5_000_000}
    found = web.post("/v1/sql", json={**body, "timeout": 30}).json()
    if "rows" in found:
        assert found["truncated"]
        assert len(found["rows"]) <= 100_000
    else:  # a worker that has answered much before may have no memory left for it
        assert "too much memory" in found["detail"]


def test_a_caller_who_leaves_ends_the_query(web, live, make):
    body = json.dumps({"sql": SLOW[1], "timeout": 60}).encode()
    for _ in range(3):  # more than there are workers
        with socket.create_connection(("127.0.0.1", live.port)) as sender:
            sender.sendall(
                b"POST /v1/sql HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                + f"Authorization: Bearer {make['token']}\r\n".encode()
                + f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            time.sleep(0.2)
    started = time.monotonic()
    assert web.post("/v1/sql", json={"sql": "select 1"}).json()["rows"] == [[1]]
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("image_id", IDS, ids=range(len(IDS)))
def test_ids_that_point_elsewhere(web, image_id):
    for path in ("/v1/images/{}", "/v1/images/{}/thumbnail", "/v1/coresets/{}", "/v1/jobs/{}"):
        answer = web.get(path.format(image_id))
        assert answer.status_code in (400, 404, 405, 422), (path, answer.status_code)
        assert "root:" not in answer.text


@pytest.mark.parametrize(
    "name",
    ["..", ".", "a/b", "../x", "/etc/x", "", "a\x00", "-x", "x" * 65, "con\n", None, 7, ["x"], {}],
)
def test_names_of_coresets_that_point_elsewhere(web, name):
    refused(web.post("/v1/coresets", json={"name": name, "budget": 10}))


@pytest.mark.parametrize(
    "keys",
    [
        {"store": "/tmp"},
        {"exclude": "/etc/passwd"},
        {"pin": "/etc/passwd"},
        {"scratch": "/tmp"},
        {"tracking": "http://127.0.0.1:9"},
        {"address": "127.0.0.1:9"},
        {"budget": -1},
        {"budget": 10**9},
        {"budget": "many"},
        {"clusters": -5},
        {"seed": -1},
        {"alpha": 1e400},
        {"__class__": "x"},
        {"budget": {"$gt": 0}},
    ],
    ids=str,
)
def test_keys_of_a_pick_that_are_not_open(web, keys):
    text = json.dumps({"name": "hostile", **keys}).replace("Infinity", "1e999")
    headers = {"Content-Type": "application/json"}
    refused(web.post("/v1/coresets", content=text, headers=headers))


@pytest.mark.parametrize(("data", "kind"), IMAGES, ids=range(len(IMAGES)))
def test_uploads_that_are_no_honest_images(web, data, kind):
    headers = {"Content-Type": kind}
    started = time.monotonic()
    refused(web.post("/v1/neighbours", content=data, headers=headers))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("path", "size"), [("/v1/sql", 300_000), ("/v1/pins", 2**21), ("/v1/neighbours", 33 * 2**20)]
)
def test_bodies_that_are_too_large(web, path, size):
    def pieces():
        for _ in range(size // 50_000 + 1):
            yield b"x" * 50_000

    for body in (b"x" * size, pieces()):
        with contextlib.suppress(Exception):  # the service may close before all is sent
            answer = web.post(path, content=body, headers={"Content-Type": "image/png"})
            assert answer.status_code == 413


def test_bodies_that_are_not_what_they_say(web):
    for body in (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"sql": 1}'):
        for path in ("/v1/sql", "/v1/pins", "/v1/coresets", "/v1/images/lookup"):
            headers = {"Content-Type": "application/json"}
            refused(web.post(path, content=body, headers=headers))


RAW = [
    b"GET /v1/pool HTTP/1.1\r\nHost: evil.example\r\n{auth}\r\n",
    b"GET /v1/pool HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n{auth}\r\n",
    b"GET /v1/pool HTTP/1.1\r\nHost: 127.0.0.1@evil.example\r\n{auth}\r\n",
    b"GET /v1/pool HTTP/1.1\r\n{auth}\r\n",
    b"GET /v1/pool HTTP/1.0\r\n{auth}\r\n",
    b"GET /v1/pool HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n{auth}\r\n",
    b"GET http://evil.example/v1/pool HTTP/1.1\r\nHost: evil.example\r\n{auth}\r\n",
    b"GET /v1/pool HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: 127.0.0.1\r\n{auth}\r\n",
    b"GET /v1/pool HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n",
    b"GET /v1/pool HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer\r\n\r\n",
    b"GET /v1/pool HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer \xff\xfe\r\n\r\n",
    b"GET /v1/pool HTTP/1.1\r\nHost: 127.0.0.1\r\n{auth}{auth}\r\n",
    b"GET /v1/pool?token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /v1/pool HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: token={token}\r\n\r\n",
    b"TRACE /v1/pool HTTP/1.1\r\nHost: 127.0.0.1\r\n{auth}\r\n",
    b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
    b"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n{auth}\r\n",
    b"GET /assets/../../../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /assets/%2e%2e/%2e%2e/app.py HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /assets//etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /v1/pool HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n{auth}\r\n",
    b"GET /v1/images?q=" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n{auth}\r\n",
    b"POST /v1/sql HTTP/1.1\r\nHost: 127.0.0.1\r\n{auth}Content-Length: -1\r\n\r\n",
    b"POST /v1/sql HTTP/1.1\r\nHost: 127.0.0.1\r\n{auth}Content-Length: 9\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"POST /v1/sql HTTP/1.1\r\nHost: 127.0.0.1\r\n{auth}Content-Length: 5\r\n"
    b"Content-Length: 6\r\n\r\nhello",
    b"POST /v1/sql HTTP/1.1\r\nHost: 127.0.0.1\r\n{auth}Content-Length: 99999999999\r\n\r\n",
    b"GET /v1/pool HTTP/9.9\r\nHost: 127.0.0.1\r\n{auth}\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00" * 64 + b"\r\n\r\n",
]


@pytest.mark.parametrize("request_bytes", RAW, ids=range(len(RAW)))
def test_tricks_with_headers(live, make, request_bytes):
    token = make["token"].encode()
    auth = b"Authorization: Bearer " + token + b"\r\n"
    data = request_bytes.replace(b"{auth}", auth).replace(b"{token}", token)
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as sender:
        with contextlib.suppress(OSError):
            sender.sendall(data)
            sender.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(OSError):
            while piece := sender.recv(65536):
                answer += piece
    status = answer.split(b" ")[1] if answer.startswith(b"HTTP/1.") else b"none"
    assert status[:1] in (b"4", b"n"), answer[:300]
    assert b"root:" not in answer
    assert b'"images":240' not in answer


def test_a_page_from_elsewhere_gets_no_permission(web, live):
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    with live.client(token=None) as stranger:
        answer = stranger.request("OPTIONS", "/v1/sql", headers=headers)
        assert answer.status_code == 401
        assert "access-control-allow-origin" not in answer.headers


def test_the_service_holds_no_more_files_than_before(web):
    count = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        web.post("/v1/sql", json={"sql": "selec", "timeout": 5})
        web.get("/v1/images/none")
    assert len(os.listdir("/proc/self/fd")) <= count + 5
