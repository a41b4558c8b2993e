"""The ingest stage on Ray: bad files cost a row each, and the accounting holds."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from echostill.curation import IngestConfig, ingest
from echostill.platform.errors import EchostillError
from echostill.platform.images import decode_staged
from echostill.platform.store import Store
from echostill.platform.tables import Table
from echostill.platform.verify import verify_store

CINE = Path(__file__).resolve().parents[2] / "examples/quickstart/pool/dicom"
CINE_FILE = CINE / "OBXXXX1A_rle_2frame.dcm"


def encoded(seed, kind="JPEG"):
    rng = np.random.default_rng(seed)
    sink = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)).save(sink, kind)
    return sink.getvalue()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for seed in range(6):
        (root / f"good_{seed}.jpg").write_bytes(encoded(seed))
    (root / "Übersicht 7.png").write_bytes(encoded(7, "PNG"))
    (root / "cine.dcm").write_bytes(CINE_FILE.read_bytes())
    return root


def plant(root):
    (root / "truncated.jpg").write_bytes(encoded(9)[:300])
    (root / "empty.png").write_bytes(b"")
    dataset = pydicom.dcmread(CINE_FILE)
    del dataset.PixelData
    dataset.SOPInstanceUID = "1.2.3"
    dataset.save_as(root / "no_pixels.dcm")


def run(root, store, **settings):
    settings = {"files_per_shard": 4, "max_error_rate": 0.5, "progress": False, **settings}
    return ingest(IngestConfig(store=str(store), source=str(root), **settings))


def test_three_bad_files_cost_three_rows(ray_cluster, folder, tmp_path):
    plant(folder)
    said = run(folder, tmp_path / "store")
    assert "11 files; 12 rows in = 9 rows out + 3 quarantined" in said
    store = Store(str(tmp_path / "store"))
    held = Table.open(store.quarantine("ingest"), "ingest").read().to_pylist()
    reasons = {row["source"]: row["message"] for row in held}
    assert set(reasons) == {"truncated.jpg", "empty.png", "no_pixels.dcm"}
    assert "truncated" in reasons["truncated.jpg"]
    assert "0 bytes" in reasons["empty.png"]
    assert "no pixel data" in reasons["no_pixels.dcm"]
    rows = store.open_pool().read().to_pylist()
    assert {row["source"] for row in rows} >= {"Übersicht 7.png", "cine.dcm#0", "cine.dcm#1"}
    assert len({row["image_id"] for row in rows}) == 9
    for row in rows:
        assert decode_staged(row["image"]).shape[:2] == (row["height"], row["width"])
    cine = [row["group_id"] for row in rows if row["source"].startswith("cine")]
    assert len(set(cine)) == 1
    assert verify_store(store.root).sound


def test_a_rotten_folder_ends_the_run_and_keeps_what_is_done(ray_cluster, folder, tmp_path):
    plant(folder)
    with pytest.raises(EchostillError, match="above max_error_rate") as raised:
        run(folder, tmp_path / "store", max_error_rate=0.1)
    assert raised.value.exit_code == 1
    pool = Store(str(tmp_path / "store")).pool()
    assert len(pool.list("done")) == 3
    assert "3 finished earlier" in run(folder, tmp_path / "store")


def test_the_same_dicom_instance_twice_is_one_image(ray_cluster, folder, tmp_path):
    (folder / "copy.dcm").write_bytes(CINE_FILE.read_bytes())
    said = run(folder, tmp_path / "store")
    assert "11 rows in = 9 rows out + 2 quarantined" in said
    store = Store(str(tmp_path / "store"))
    held = Table.open(store.quarantine("ingest"), "ingest").read().to_pylist()
    assert {row["error_class"] for row in held} == {"RepeatedId"}
    assert verify_store(store.root).sound


def test_ids_do_not_depend_on_where_the_folder_lies(ray_cluster, folder, tmp_path):
    run(folder, tmp_path / "one")
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    run(moved, tmp_path / "two", workers=2)
    for name in ("one", "two"):
        assert Store(str(tmp_path / name)).pool().exists("manifest.json")
    first, second = (Store(str(tmp_path / name)).open_pool() for name in ("one", "two"))
    assert first.digest == second.digest
