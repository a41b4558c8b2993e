"""What was withdrawn does not come in again, whatever its file is called by then."""

from dataclasses import asdict

import numpy as np
import pytest

from echostill.curation import IngestConfig, ingest
from echostill.curation.deidentification.pseudonyms import Pseudonymiser
from echostill.curation.deidentification.review import ReviewGate
from echostill.curation.ingestion.keys import under_key
from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.settings import KEY_VARIABLE, IngestSettings
from echostill.curation.ingestion.worker import IngestWorker
from echostill.curation.withdrawal.refusal import describe_refused
from echostill.curation.withdrawal.request import WithdrawalRequest
from echostill.curation.withdrawal.withdrawing import withdraw
from echostill.platform.imaging.images import encode_png
from echostill.platform.shards.records import write_record
from echostill.platform.tables.store import Store
from echostill.platform.tables.verify import verify_store
from echostill.platform.withdrawal.tombstones import NOTE, Tombstones

KEY = b"the key of a hospital, kept elsewhere"
MANIFEST = "file,patient\n" + "".join(f"{n}.png,P{n // 2}\n" for n in range(6))


def picture(seed):
    return encode_png(np.random.default_rng(seed).integers(0, 256, (20, 30), dtype=np.uint8))


@pytest.fixture
def ward(tmp_path):
    """Six pictures of three patients, and who they are of."""
    folder = tmp_path / "ward"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(picture(number))
    (folder / "patients.csv").write_text(MANIFEST)
    return folder


def read(folder, tombstones=None, pictures=None):
    """What a worker makes of the manifest's files."""
    settings = IngestSettings(
        source=str(folder / "patients.csv"), deidentify={"pixels": "off"}, stage_side=64
    )
    sources = [asdict(under_key(one, KEY)) for one in list_sources(settings)]
    gate = ReviewGate(tombstones=tombstones or Tombstones(), pictures=pictures)
    return IngestWorker(settings, Pseudonymiser(KEY, hidden=True), gate, {}).process(sources)


def stones(rows, groups=()):
    return Tombstones().added(
        [row["image_id"] for row in rows], [row["content_hash"] for row in rows], [], groups, KEY
    )


def test_withdrawn_images_are_refused_and_counted(ward):
    before = read(ward)
    first = before.rows.to_pylist()[2]
    after = read(ward, stones([first]))
    assert after.rows.to_pylist() == [r for r in before.rows.to_pylist() if r != first]
    assert list(after.units) == [(1, 0), (1, 0), (0, 0), (1, 0), (1, 0), (1, 0)]
    assert len(after.notes[NOTE]) == 1
    assert first["image_id"] not in str(after.notes)


def test_another_name_does_not_help(ward):
    first = read(ward).rows.to_pylist()[0]
    (ward / "0.png").rename(ward / "other.png")
    (ward / "patients.csv").write_text(MANIFEST.replace("0.png,P0", "other.png,P2"))
    again = read(ward, stones([first]))
    assert first["content_hash"] not in again.rows["content_hash"].to_pylist()
    assert again.rows.num_rows == 5


def test_a_later_picture_of_a_withdrawn_patient_is_refused(ward):
    rows = read(ward).rows.to_pylist()
    (ward / "new.png").write_bytes(picture(99))
    (ward / "patients.csv").write_text(MANIFEST + "new.png,P1\n")
    assert read(ward).rows.num_rows == 7
    refused = read(ward, stones(rows[2:4], groups=[rows[2]["group_id"]]))
    assert refused.rows["group_id"].to_pylist().count(rows[2]["group_id"]) == 0
    assert refused.rows.num_rows == 4
    assert len(refused.notes[NOTE]) == 3


def test_the_count_is_of_images(tmp_path):
    store = Store(str(tmp_path))
    assert describe_refused(store) == ""
    store.storage.write("withdrawn/tombstones.json", b"{}")
    store.storage.write("pool/part-00000.parquet", b"")
    for shard, marks in enumerate((["a", "b"], ["b", "c"], [])):
        write_record(store.pool(), {"shard": shard, "notes": {NOTE: marks}})
    assert describe_refused(store) == "; 3 withdrawn image(s) refused"


def test_the_same_ingest_does_not_bring_it_back(ray_cluster, ward, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY.decode())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = IngestConfig(
        store=str(tmp_path / "store"),
        source=str(ward / "patients.csv"),
        deidentify={"pixels": "off"},
        files_per_shard=2,
        progress=False,
    )
    ingest(config)
    store = Store(config.store)
    withdraw(config.store, WithdrawalRequest("patient", "P1"), reason="asked to", key=KEY)
    assert store.open_pool().rows == 4
    said = str(ingest(config))
    assert "already done" in said
    assert "2 withdrawn image(s) refused" in said
    other = config.model_copy(update={"stage_side": 16})  # other pixels, and other contents
    said = str(ingest(other, overwrite=True))
    assert "2 withdrawn image(s) refused" in said
    assert store.open_pool().rows == 4
    assert verify_store(config.store).sound
