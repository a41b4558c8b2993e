"""A small store with real pictures, its service, and the service on a port of this machine.

Every answer that a test gets through ``live.client()`` is checked against its declaration.
"""

import json
import re
import shutil
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
import pyarrow as pa
import pytest
import uvicorn

from echostill.curation.deidentification.decisions import review_storage
from echostill.curation.deidentification.review import REVIEW_SCHEMA, prepare_pictures
from echostill.curation.selection.stage import SelectConfig, select
from echostill.curation.service.data.derived import derived_folder, prepare
from echostill.curation.service.data.state import State
from echostill.curation.service.http.app import ROUTES, Options, create_app
from echostill.curation.service.http.models.health import Problem
from echostill.curation.service.problems import MEDIA_TYPE
from echostill.curation.service.serving import configuration
from echostill.platform.imaging.images import content_hash, encode_png
from echostill.platform.tables.schemas import POOL_SCHEMA, QUARANTINE_SCHEMA, scores_schema
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import write_table
from echostill.platform.tables.user_cache import user_cache

ROWS, QUARANTINED, DIMENSION = 240, 4, 64
ORGANS = ["liver", "heart", "lung", ""]
TOKEN = "a-token-of-the-tests-0123456789"


def identity(row):
    return f"{row * 0x9E3779B9 % 2**32:08x}{row:024x}"


def picture(row):
    numbers = np.random.default_rng(row)
    shape = (40 + row % 7, 60) if row % 3 else (40, 60, 3)
    return numbers.integers(0, 256, shape, dtype=np.uint8)


def pool_rows(rows=ROWS):
    found = []
    for row in range(rows):
        pixels = picture(row)
        found.append(
            {
                "image_id": identity(row),
                "group_id": f"clip{row // 6}",
                "source": f"ward {row % 4}/scan_{row:04d}.png",
                "organ": ORGANS[row % 4],
                "device": "CX50" if row % 5 else "",
                "label": "",
                "frame": row % 6,
                "image": encode_png(pixels),
                "width": pixels.shape[1],
                "height": pixels.shape[0],
                "original_width": 120,
                "original_height": 80,
                "colour": pixels.ndim == 3,
                "content_hash": content_hash(pixels),
                "mean": float(pixels.mean() / 255),
                "contrast": float(pixels.std() / 255),
            }
        )
    return found


def features(rows=ROWS, dimension=DIMENSION):
    """Eight loose clusters on the sphere."""
    numbers = np.random.default_rng(7)
    centres = numbers.normal(size=(8, dimension))
    found = centres[np.arange(rows) % 8] + 0.5 * numbers.normal(size=(rows, dimension))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def write_store(root, rows=ROWS, quarantined=QUARANTINED, dimension=DIMENSION):
    store = Store(str(root))
    pool = pa.Table.from_pylist(pool_rows(rows), schema=POOL_SCHEMA)
    write_table(
        store.pool(),
        pool,
        stage="ingest",
        fingerprint={},
        rows_per_part=90,
        extra={"rows_in": rows},
    )
    kept = rows - quarantined
    numbers = np.random.default_rng(3)
    # Scores come in another order than the pool's rows.
    order = numbers.permutation(kept)
    gradient = numbers.random((kept, 3)).astype(np.float32)
    scores = pa.table(
        [
            pa.array([identity(row) for row in order]),
            pa.FixedSizeListArray.from_arrays(
                pa.array(features(rows, dimension)[order].ravel()), dimension
            ),
            pa.array(gradient.mean(axis=1)),
            pa.array(gradient.std(axis=1)),
            pa.FixedSizeListArray.from_arrays(pa.array(gradient.ravel()), 3),
            pa.array(gradient[:, 0]),
        ],
        schema=scores_schema(dimension, 3),
    )
    write_table(
        store.scores(),
        scores,
        stage="score",
        fingerprint={"weights": {}, "digest": "0"},
        rows_per_part=100,
        extra={"rows_in": rows},
    )
    store.scores().write("configuration.json", json.dumps({"seed": 0}).encode())
    lost = [
        {
            "stage": "score",
            "id": identity(row),
            "source": "",
            "error_class": "DecodeError",
            "message": "is damaged or truncated: test",
        }
        for row in range(kept, rows)
    ]
    held = pa.Table.from_pylist(lost, schema=QUARANTINE_SCHEMA)
    write_table(store.quarantine("score"), held, stage="score", fingerprint={})
    write_table(
        store.quarantine("ingest"), QUARANTINE_SCHEMA.empty_table(), stage="ingest", fingerprint={}
    )
    return store


def hold_back(store, frames=6):
    """Frames that wait for review, two of a group; the last one could not be cleaned."""
    rows = [
        {
            "image_id": f"{number:08x}" + "e" * 24,
            "source": f"ward 9/name_{number}.png",
            "reason": "text" if number < frames - 1 else "failed: ValueError",
            "score": 0.9 - 0.1 * number,
            "boxes": [[4, 4, 20, 9]],
            "confidence": 1.0,
            "method": "texture",
            "cleaned": f"{number:064x}" if number < frames - 1 else "",
            "redacted": 0.0,
            "organ": ORGANS[number % 2],
            "device": "CX50",
            "group_id": f"study{number // 2}",
        }
        for number in range(frames)
    ]
    table = pa.Table.from_pylist(rows, schema=REVIEW_SCHEMA)
    write_table(review_storage(store), table, stage="ingest", fingerprint={})
    for number in range(frames - 1):
        name = rows[number]["image_id"]
        prepare_pictures(store).write(f"{name}.png", encode_png(picture(number)))
    return [row["image_id"] for row in rows]


def pick(root, **keys):
    return str(select(SelectConfig(**{"store": str(root), "budget": 60, "clusters": 8, **keys})))


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A store with two coresets and everything that a service derives; not to be changed."""
    root = tmp_path_factory.mktemp("service") / "store"
    store = write_store(root)
    hold_back(store)
    pick(root, name="default")
    pick(root, name="spread", max_per_group=2, seed=1)
    prepare(store, derived_folder(store), lambda stage, fraction: None)
    return root


@pytest.fixture
def own_store(built, tmp_path):
    """A copy that a test may change."""
    root = tmp_path / "store"
    shutil.copytree(built, root)
    return root


@pytest.fixture
def own_cache(built, tmp_path, monkeypatch):
    """A copy of what was derived, for a test that withdraws: that deletes it."""
    cache = tmp_path / "cache"
    shutil.copytree(user_cache(), cache / "echostill")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


@pytest.fixture(scope="session")
def state(built):
    found = State(str(built))
    found.refresh()
    return found


def with_teacher(root, digest=None):
    """Record in the scores that a micro teacher made them, and put its weights into the store."""
    import torch

    from echostill.platform.models import create_encoder, save_weights, weights_digest

    store = Store(str(root))
    torch.manual_seed(0)
    teacher = create_encoder("tinyusfm-micro").eval()
    path = str(root / "teacher.safetensors")
    save_weights(teacher, path, {})
    configuration = {"teacher": {"model": "tinyusfm-micro", "weights": path}}
    store.scores().write("configuration.json", json.dumps(configuration).encode())
    manifest = json.loads(store.scores().read("manifest.json"))
    manifest["fingerprint"] = {"weights": {"teacher": digest or weights_digest(path)}}
    store.scores().write("manifest.json", json.dumps(manifest).encode())
    return teacher


# Every operation, (method, path template), and its declared responses by status.
OPERATIONS = {
    (method, route.path): route.responses
    for module in ROUTES
    for route in module.router.routes
    for method in route.methods
}


def operation_of(request):
    """The operation that a request reaches; None for the explorer's files and unknown paths."""
    # Percent-encoded, so that a quoted slash stays inside its part of the path.
    path = request.url.raw_path.decode().partition("?")[0]
    for method, template in OPERATIONS:
        pattern = re.sub(r"{\w+}", "[^/]+", template)
        if method == request.method and re.fullmatch(pattern, path):
            return method, template
    return None


def check_answer(response):
    """Check a response: its status, its media type, and a JSON body against its model."""
    response.read()
    operation = operation_of(response.request)
    if operation is None:
        return
    declared = OPERATIONS[operation].get(response.status_code)
    media_type = response.headers.get("content-type", "").partition(";")[0]
    if declared is None:
        assert (response.status_code >= 400, media_type) == (True, MEDIA_TYPE), operation
        check_json(Problem, response.content)
    elif media_type == "application/json" and "model" in declared:
        check_json(declared["model"], response.content)
    elif response.content:
        types = [name.partition(";")[0] for name in declared.get("content", {})]
        assert media_type in types, operation


def check_json(model, content):
    """The body has the members and types of the model and no others; nothing is filled in."""
    found = model.model_validate_json(content, strict=True)
    again = found.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert again == json.loads(content)


@dataclass
class Live:
    """A service on a port."""

    root: Path
    url: str
    port: int

    def client(self, token=TOKEN):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx2.Client(
            base_url=self.url,
            headers=headers,
            timeout=60,
            trust_env=False,
            event_hooks={"response": [check_answer]},
        )


class Running:
    """uvicorn in a thread."""

    def __init__(self, root, wait=True):
        app = create_app(Options(str(root), TOKEN, log=False))
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.app = app
        self.server = uvicorn.Server(configuration(app, "127.0.0.1", 0))
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 60
        while not self.server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        self.live = Live(root, f"http://127.0.0.1:{self.port}", self.port)
        with self.live.client() as client:  # started is not ready: tables are still being mapped
            while wait and client.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(30)


@pytest.fixture(scope="session")
def running(built, tmp_path_factory):
    root = tmp_path_factory.mktemp("running") / "store"
    shutil.copytree(built, root)
    found = Running(root)
    yield found
    found.stop()


@pytest.fixture(scope="session")
def live(running):
    """A service that many tests share; they may add pins and coresets of their own names."""
    return running.live


@pytest.fixture(scope="session")
def web(live):
    """A client with the token."""
    with live.client() as client:
        yield client


@pytest.fixture(scope="session")
def make():
    """The functions above, for tests that need a store of their own."""
    return {
        "write_store": write_store,
        "hold_back": hold_back,
        "identity": identity,
        "features": features,
        "pick": pick,
        "with_teacher": with_teacher,
        "pool_rows": pool_rows,
        "running": Running,
        "token": TOKEN,
        "picture": picture,
        "operations": OPERATIONS,
        "operation_of": operation_of,
        "check_answer": check_answer,
        "check_json": check_json,
    }
