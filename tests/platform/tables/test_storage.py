"""One layer over a folder and over a real S3 server: the same answers from both."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from echostill.curation import IngestConfig, SelectConfig, select
from echostill.curation.ingestion.stage import prepare_ingest
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import encode_png
from echostill.platform.shards.events import read_events
from echostill.platform.tables import storage as storage_module
from echostill.platform.tables.schemas import scores_schema
from echostill.platform.tables.storage import Storage, file_in
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table, encode_parquet, write_table
from echostill.platform.tables.verify import verify_store

FILES, PER_SHARD = 20, 2
SILENT = "endpoint_override=http://127.0.0.1:1&region=us-east-1"
# Whatever a file system takes for a name: all characters but the separator and NUL.
NAMES = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=40
).filter(lambda name: name not in (".", ".."))


@pytest.fixture
def bucket(object_store, monkeypatch):
    for name, value in object_store.items():
        monkeypatch.setenv(name, value)
    return "s3://hospital"


@pytest.mark.parametrize("remote", [False, True])
def test_a_folder_and_a_bucket_answer_alike(remote, request, tmp_path):
    root = f"{request.getfixturevalue('bucket')}/alike" if remote else str(tmp_path / "alike")
    storage = Storage(root)
    assert storage.is_local is not remote
    assert not storage.exists()
    assert storage.list() == []
    assert storage.size("a") is None
    assert storage.mark("a") is None
    with pytest.raises(FileNotFoundError):
        storage.read("a")
    storage.delete("a")
    big = np.random.default_rng(0).bytes(12_000_000)  # more than one part of an upload
    for name, data in {"a": b"first", "deep/er/b": big, "deep/c": b""}.items():
        storage.write(name, data)
    before = storage.mark("a")
    storage.write("a", b"second")
    assert storage.mark("a") == storage.mark("a") != before
    assert storage.mark("a")[1] == storage.size("a")
    assert storage.mark("deep") is None  # a folder
    assert storage.mark("a/b") is None  # below a file
    assert storage.read("a") == b"second"
    assert storage.read("deep/er/b") == big
    assert storage.list() == ["a"]
    assert storage.list(recursive=True) == ["a", "deep/c", "deep/er/b"]
    assert storage.sizes("deep") == {"deep/c": 0, "deep/er/b": len(big)}
    assert storage.sizes("deep", recursive=False) == {"deep/c": 0}
    assert storage.exists("deep")
    assert storage.exists("deep/c")
    inner = pickle.loads(pickle.dumps(storage.at("deep")))
    assert inner.list() == ["c"]
    storage.delete("deep")
    assert storage.list(recursive=True) == ["a"]
    if remote:
        with pytest.raises(UsageError, match="is not a local folder"):
            storage.append("log", b"line\n")
    else:
        storage.append("log", b"line\n")
        storage.append("log", b"line\n")
        assert storage.read("log") == b"line\nline\n"


@settings(max_examples=30)  # each one waits for the disk
@given(NAMES)
@example("a b#c?d=e&f;g%20h'\"*[x]{y}=:\\")
@example("line\nbreak")
@example("dot.")
@example("-dash")
@example("~tilde")
@example("e\u0301")  # decomposed, as macOS writes it
def test_a_folder_may_have_any_name(name):
    with tempfile.TemporaryDirectory() as outer:
        beside = Path(outer) / ("beside" if name != "beside" else "another")
        beside.write_bytes(b"untouched")
        storage = Storage(f"{outer}/{name}")
        table = pa.table({"number": [1, 2]})
        write_table(storage.at("pool"), table, stage="ingest", fingerprint={})
        again = pickle.loads(pickle.dumps(Storage(storage.uri).at("pool")))
        assert Table.open(again, "ingest").read() == table
        assert Storage(Path(outer, name).as_uri()).list(recursive=True) == storage.list(
            recursive=True
        )
        assert [entry.name for entry in Path(outer).iterdir() if entry != beside] == [name]
        storage.delete("")
        assert list(Path(outer).iterdir()) == [beside]


@pytest.mark.parametrize(
    ("root", "match"),
    [
        (os.fsdecode(b"/tmp/\xff\xfe"), "is not UTF-8 text: rename the folder"),
        ("a\0b", "is not the path of a folder"),
        ("", "is not the path of a folder"),
        ("file:///tmp/a#b", "write `[?]` as %3F"),
        ("file:///tmp/a\nb", "write `[?]` as %3F"),
        ("file://server/share", "is not the URI of a local folder"),
    ],
)
def test_what_names_no_folder_is_refused_in_one_line(root, match):
    with pytest.raises(UsageError, match=match) as caught:
        Storage(root)
    assert "\n" not in str(caught.value).replace(root, "")


def test_only_a_tilde_alone_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Storage("~/runs/a").root == f"{tmp_path}/runs/a"
    assert Storage("~runs").root == f"{tmp_path}/~runs"
    assert Storage("x/~/y").root == f"{tmp_path}/x/~/y"


def test_a_file_is_split_into_its_folder_and_its_name(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, root, name in (
        ("a.csv", str(tmp_path), "a.csv"),
        ("/a.csv", "/", "a.csv"),
        ("week #3?/50%20.csv", f"{tmp_path}/week #3?", "50%20.csv"),
        ("file:///a%20b/50%25.csv", "/a b", "50%.csv"),
        (f"{bucket}/a/b.csv", f"{bucket}/a", "b.csv"),
    ):
        folder, file = file_in(path)
        assert (folder.root, file) == (root, name)


def test_an_upload_is_nothing_until_it_ends(bucket):
    storage = Storage(f"{bucket}/partial")
    stream = storage.filesystem.open_output_stream(storage.arrow_path("part"))
    stream.write(b"0" * 11_000_000)
    assert not storage.exists("part")
    assert storage.list() == []
    stream.close()
    assert storage.size("part") == 11_000_000


def test_a_worker_opens_what_its_driver_has_open_though_it_is_silent_just_then(monkeypatch):
    asked = []
    monkeypatch.setattr(storage_module, "check_bucket", lambda *place: asked.append(place))
    monkeypatch.setattr(storage_module, "_checked", set())
    sent = pickle.dumps(Storage(f"s3://ward/a?{SILENT}"))
    assert asked == [("s3://ward/a", SILENT)]
    storage_module._checked.clear()  # as in another process
    assert pickle.loads(sent).uri == f"s3://ward/a?{SILENT}"
    assert Storage(f"s3://ward/b?{SILENT}").root == "s3://ward/b"
    assert len(asked) == 1


@pytest.mark.slow
def test_what_cannot_be_reached_is_said(bucket, object_store):
    with pytest.raises(UsageError, match="there is no bucket 'no-such-bucket'"):
        Storage("s3://no-such-bucket/x")
    with pytest.raises(UsageError, match="cannot reach the object store of 's3://hospital/x'"):
        Storage("s3://hospital/x?endpoint_override=http://127.0.0.1:1")
    port = object_store["AWS_ENDPOINT_URL"]
    there = Storage(f"{bucket}/options?endpoint_override={port}&region=us-east-1")
    there.at("inner").write("a", b"data")
    assert Storage(there.at("inner").uri).read("a") == b"data"
    assert there.locate("inner/a") == f"{bucket}/options/inner/a"


def command(name, *arguments):
    return [sys.executable, "-m", "echostill.jobs.cli.main", name, *arguments]


@pytest.mark.ray
def test_a_bucket_is_ingested_into_a_bucket_through_a_kill(bucket, tmp_path):
    """Killed with some shards finished; resumed, the pool is what the worker gives on its own."""
    incoming, store = Storage(f"{bucket}/incoming"), Store(f"{bucket}/store")
    rng = np.random.default_rng(0)
    for number in range(FILES):
        data = encode_png(rng.integers(0, 255, (700, 900), dtype=np.uint8))
        incoming.write(f"ward/{number:02d}.png", data[:500] if number == 13 else data)
    keys = [f"store={store.root}", f"source={incoming.root}", f"files_per_shard={PER_SHARD}"]
    keys.append("deidentify.pixels=off")
    ingest = command("ingest", *keys, "workers=1", "max_error_rate=0.5")
    with subprocess.Popen(ingest, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + 300
        while not store.pool().list("done") and time.monotonic() < deadline:
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
    assert 0 < len(store.pool().list("done")) < FILES // PER_SHARD
    assert not store.pool().exists("manifest.json")
    again = subprocess.run(ingest, capture_output=True, text=True, timeout=400, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{FILES} rows in = {FILES - 1} rows out + 1 quarantined" in again.stdout
    assert "finished earlier" in again.stdout
    assert verify_store(store.root).sound

    config = IngestConfig(
        store=store.root,
        source=incoming.root,
        files_per_shard=PER_SHARD,
        deidentify={"pixels": "off"},
    )
    ready = prepare_ingest(config, overwrite=False)
    parts = store.open_pool().manifest["parts"]
    for part, shard in zip(parts, ready.shards, strict=True):
        rows = ready.make_worker(config)().process(shard).rows
        assert store.pool().read(part["file"]) == encode_parquet(rows)

    logged = read_events(store.events(), "ingest")
    kinds = [event["event"] for event in logged]
    assert kinds.count("started") == 2
    assert kinds[-1] == "finished"
    resumed = next(event for event in logged if event["event"] == "resumed")
    assert len(resumed["repeated"]) <= 1
    told = subprocess.run(
        command("watch", store.root), capture_output=True, text=True, timeout=200, check=True
    )
    assert len(told.stdout.splitlines()) == len(logged)

    choose(store, rng)


def choose(store, rng):
    """Select into the bucket, from scores that are written there as a stage would."""
    ids = store.open_pool().read(["image_id"])["image_id"].to_pylist()
    features = rng.normal(size=(len(ids), 8))
    rows = [
        {
            "image_id": image_id,
            "feature": (feature / np.linalg.norm(feature)).astype(np.float16),
            "gradient_mean": value,
            "gradient_std": 0.1,
            "gradient": [value, value, value],
            "reconstruction_error": 0.5,
        }
        for image_id, feature, value in zip(ids, features, rng.random(len(ids)), strict=True)
    ]
    import pyarrow as pa

    table = pa.Table.from_pylist(rows, schema=scores_schema(8, 3))
    extra = {"rows_in": len(ids), "quarantined": 0}
    write_table(store.scores(), table, stage="score", fingerprint={"digest": "x"}, extra=extra)
    select(SelectConfig(store=store.root, budget=5, clusters=2))
    selected = store.open_coreset("default").read(["selected"])["selected"].to_pylist()
    assert (len(selected), sum(selected)) == (len(ids), 5)


def test_names_are_atomic_on_a_disk(tmp_path):
    storage = Storage(str(tmp_path))
    storage.write("a", b"old")
    with pytest.raises(TypeError):
        storage.write("a", "not bytes")
    assert storage.read("a") == b"old"
    assert os.listdir(tmp_path) == ["a"]
