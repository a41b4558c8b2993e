"""The ingest stage on Ray: bad files cost a row each, and the accounting holds."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from echostill.curation import IngestConfig, ingest, retry_ingest
from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.imaging.images import decode_staged
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table
from echostill.platform.tables.verify import verify_store

CINE = Path(__file__).resolve().parents[3] / "examples/quickstart/pool/dicom"
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
    # Here it is about files; what de-identification does is in its own tests.
    settings.setdefault("deidentify", DeidentifySettings(pixels="off", sources="names"))
    settings = {"files_per_shard": 4, "max_error_rate": 0.5, "progress": False, **settings}
    return str(ingest(IngestConfig(store=str(store), source=str(root), **settings)))


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


def test_one_uid_over_many_pictures_is_many_images(ray_cluster, dicom, tmp_path, capsys):
    """Some exports give an instance UID to each study, or to all of them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (6, 1, 30, 40), dtype=np.uint8)
    for number, values in enumerate(pictures):
        data = dicom(values, SOPInstanceUID="1.2.7", StudyInstanceUID=f"1.2.{number // 2}")
        (folder / f"IM{number}").write_bytes(data)
    (folder / "IM4 copy").write_bytes((folder / "IM4").read_bytes())
    (tmp_path / "key").write_bytes(b"a secret of some length")
    options = {"files_per_shard": 2, "key_file": str(tmp_path / "key")}
    store = Store(str(tmp_path / "store"))
    assert "7 rows in = 6 rows out + 1 quarantined" in run(folder, store.root, **options)
    told = " ".join(capsys.readouterr().err.split())
    assert "5 image(s) have the id (for DICOM, the SOP instance UID) of another image" in told
    rows = store.open_pool().read(["image_id", "source", "content_hash"]).to_pylist()
    assert len({row["image_id"] for row in rows}) == 6
    assert len({row["content_hash"] for row in rows}) == 6
    (held,) = held_in(store.root).values()
    assert (held["source"], held["error_class"]) == ("IM4 copy", "RepeatedId")
    assert verify_store(store.root).sound
    # Cut short and finished, and with a file that comes in later: the same ids.
    pool = tmp_path / "store" / "pool"
    whole = {path.name: path.read_bytes() for path in pool.glob("part-*")}
    records = tmp_path / "store" / "records" / "pool"
    (records / "manifest.json").unlink()
    (records / "done" / "00001.json").unlink()
    run(folder, store.root, **options)
    assert {path.name: path.read_bytes() for path in pool.glob("part-*")} == whole
    mended = folder / "IM0"
    first = mended.read_bytes()
    mended.write_bytes(first[:200])
    run(folder, tmp_path / "other", **options)
    mended.write_bytes(first)
    config = IngestConfig(
        store=str(tmp_path / "other"),
        source=str(folder),
        max_error_rate=0.5,
        progress=False,
        deidentify=DeidentifySettings(pixels="off", sources="names"),
        **options,
    )
    retry_ingest(config)
    other = Store(str(tmp_path / "other")).open_pool().read(["image_id", "source"]).to_pylist()
    assert {(row["image_id"], row["source"]) for row in other} == {
        (row["image_id"], row["source"]) for row in rows
    }


def test_ids_do_not_depend_on_where_the_folder_lies(ray_cluster, folder, tmp_path):
    run(folder, tmp_path / "one")
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    run(moved, tmp_path / "two", workers=2)
    for name in ("one", "two"):
        assert Store(str(tmp_path / name)).pool().exists("manifest.json")
    first, second = (Store(str(tmp_path / name)).open_pool() for name in ("one", "two"))
    assert first.digest == second.digest


def held_in(store):
    table = Table.open(Store(str(store)).quarantine("ingest"), "ingest")
    return {row["source"]: row for row in table.read().to_pylist()}


def test_a_benchmark_never_enters_the_pool_under_another_name(ray_cluster, folder, tmp_path):
    benchmark = tmp_path / "benchmark"
    benchmark.mkdir()
    (benchmark / "renamed.jpg").write_bytes(encoded(3))
    (benchmark / "list.csv").write_text("file,label\nrenamed.jpg,benign\n")
    said = run(folder, tmp_path / "store", exclude=(str(benchmark / "list.csv"),))
    assert "7 files; 8 rows in = 8 rows out + 0 quarantined" in said
    sources = Store(str(tmp_path / "store")).open_pool().read(["source"])["source"].to_pylist()
    assert "good_2.jpg" in sources
    assert "good_3.jpg" not in sources


def test_a_manifest_with_bad_rows(ray_cluster, folder, tmp_path):
    """A file listed twice, one that is not there and an empty cell: a row of quarantine each."""
    manifest = folder / "list.csv"
    rows = ["file,group,organ", "good_0.jpg,012,liver", "good_0.jpg,012,liver", "gone.jpg,12,"]
    manifest.write_text("\n".join([*rows, ",12,lung", "good_1.jpg,12,lung"]) + "\n")
    said = run(manifest, tmp_path / "store", max_error_rate=0.6)
    assert "5 rows in = 2 rows out + 3 quarantined" in said
    table = Store(str(tmp_path / "store")).open_pool().read(["group_id", "organ"])
    assert table["group_id"].to_pylist() == ["012", "12"]
    assert table["organ"].to_pylist() == ["liver", "lung"]
    classes = {row["error_class"] for row in held_in(tmp_path / "store").values()}
    assert classes == {"ListingError", "DecodeError"}
    assert verify_store(str(tmp_path / "store")).sound


def test_workers_group_patients_under_the_secret_key(ray_cluster, folder, tmp_path):
    for number, patient in enumerate(("A", "A", "B")):
        dataset = pydicom.dcmread(CINE_FILE)
        dataset.PatientID = patient
        dataset.StudyInstanceUID = f"1.2.{number}"
        dataset.SOPInstanceUID = f"1.2.{number}.1"
        dataset.save_as(folder / f"patient_{number}.dcm")
    (tmp_path / "key").write_bytes(b"a secret of some length")
    run(folder, tmp_path / "store", key_file=str(tmp_path / "key"))
    table = Store(str(tmp_path / "store")).open_pool().read(["source", "group_id"])
    groups = dict(zip(*(column.to_pylist() for column in table.columns), strict=True))
    first, second, third = (groups[f"patient_{number}.dcm#0"] for number in range(3))
    assert first == second != third


def test_a_run_cut_short_ends_as_an_undisturbed_one(ray_cluster, folder, tmp_path):
    plant(folder)
    (folder / "copy.dcm").write_bytes(CINE_FILE.read_bytes())
    run(folder, tmp_path / "store")
    pool = tmp_path / "store" / "pool"
    whole = {path.name: path.read_bytes() for path in pool.iterdir() if path.is_file()}
    held = held_in(tmp_path / "store")
    records = tmp_path / "store" / "records" / "pool"
    said = {path.name: path.read_bytes() for path in records.iterdir() if path.is_file()}
    (records / "manifest.json").unlink()  # cut after the repeated ids were moved
    assert "(3 finished earlier)" in run(folder, tmp_path / "store")
    (records / "manifest.json").unlink()
    (records / "done" / "00001.json").unlink()  # cut while shards were written
    cut = pool / "part-00002.parquet"
    cut.write_bytes(cut.read_bytes()[:-5])
    assert "(1 finished earlier)" in run(folder, tmp_path / "store")
    assert {path.name: path.read_bytes() for path in pool.iterdir() if path.is_file()} == whole
    assert {path.name: path.read_bytes() for path in records.iterdir() if path.is_file()} == said
    assert held_in(tmp_path / "store") == held
    assert "already done" in run(folder, tmp_path / "store")
    assert verify_store(str(tmp_path / "store")).sound


def test_mended_files_take_their_places(ray_cluster, folder, tmp_path):
    """A file mended, one still bad, the same instance twice: as if mended before the first run."""
    plant(folder)
    (folder / "cine.dcm").write_bytes(CINE_FILE.read_bytes()[:2000])
    (folder / "recopy.dcm").write_bytes(CINE_FILE.read_bytes())
    (tmp_path / "key").write_text("a key of sixteen bytes or more")
    key = str(tmp_path / "key")  # without one, identifiers change with the files
    run(folder, tmp_path / "store", key_file=key)
    run(folder, tmp_path / "keyless")
    for name, data in (("cine.dcm", CINE_FILE.read_bytes()), ("truncated.jpg", encoded(9))):
        (folder / name).write_bytes(data)
    run(folder, tmp_path / "calm", key_file=key)
    config = IngestConfig(
        store=str(tmp_path / "store"),
        source=str(folder),
        key_file=key,
        deidentify={"pixels": "off", "sources": "names"},
        files_per_shard=4,
        max_error_rate=0.5,
        progress=False,
    )
    said = str(retry_ingest(config))
    # The cine is two frames now; its copy, which stood in for it, is read already.
    assert "4 quarantined before, 4 now; 14 rows in = 10 rows out + 4 quarantined" in said
    tables = ("pool", "quarantine/ingest")
    for table in (*tables, *(f"records/{table}" for table in tables)):
        rough, calm = (tmp_path / name / table for name in ("store", "calm"))
        found = {path.name: path.read_bytes() for path in rough.iterdir() if path.is_file()}
        assert found == {path.name: path.read_bytes() for path in calm.iterdir() if path.is_file()}
    assert verify_store(config.store).sound
    # A key of the run's own is found again though two of its files are others now.
    values = {"store": str(tmp_path / "keyless"), "key_file": None}
    assert "4 quarantined before, 4 now" in str(retry_ingest(config.model_copy(update=values)))
    (folder / "one more.jpg").write_bytes(encoded(20))
    with pytest.raises(
        UsageError, match=r"refused: 1 file added, 0 removed, 0 changed: one more\.jpg"
    ):
        retry_ingest(config)


def test_a_run_is_as_rotten_when_it_is_resumed(ray_cluster, folder, tmp_path):
    """Images read already count as errors, whether or not the run was interrupted."""
    for number in range(6):
        (folder / f"copy_{number}.dcm").write_bytes(CINE_FILE.read_bytes())
    for _ in range(2):
        with pytest.raises(EchostillError, match="above max_error_rate"):
            run(folder, tmp_path / "store", max_error_rate=0.3)
        assert not Store(str(tmp_path / "store")).pool().exists("manifest.json")
    said = run(folder, tmp_path / "store", max_error_rate=0.6)
    assert "21 rows in = 9 rows out + 12 quarantined" in said
