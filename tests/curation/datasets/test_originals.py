"""Originals: the very bytes of the sources, or a refusal in words."""

import csv
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from echostill.curation.datasets import export_dataset
from echostill.curation.deidentification.review import ReviewGate
from echostill.curation.ingestion.keys import beginnings, find_pseudonymiser, keep_key, under_key
from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.stage import IngestConfig
from echostill.curation.ingestion.worker import IngestWorker
from echostill.jobs.cli.main import app
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.imaging.images import encode_png
from echostill.platform.tables.schemas import POOL_SCHEMA
from echostill.platform.tables.store import Store, save_configuration
from echostill.platform.tables.table import Table, write_table

POOL = Path(__file__).parents[3] / "examples/quickstart/pool"
CINE = POOL / "dicom" / "OBXXXX1A_rle_2frame.dcm"


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (40, 48), dtype=np.uint8)


def ingest(root, places, **deidentify):
    """A pool as the stage makes it, in this process; and a coreset of all of it."""
    store = Store(str(root))
    settings = {"pixels": "off", "sources": "names", **deidentify}
    config = IngestConfig(
        store=store.root, source=tuple(map(str, places)), stage_side=32, deidentify=settings
    )
    sources = list_sources(config)
    contents = beginnings(config, sources)
    pseudonymiser = find_pseudonymiser(config, contents, None)
    worker = IngestWorker(config, pseudonymiser, ReviewGate(), {})
    payload = [asdict(under_key(source, pseudonymiser.key)) for source in sources]
    rows = worker.process(payload).rows
    write_table(store.pool(), rows.cast(POOL_SCHEMA), stage="ingest", fingerprint={})
    keep_key(store.pool(), pseudonymiser, contents)
    shown = pseudonymiser.values(config.model_dump(), ("source", "exclude", "root"))
    save_configuration(store.pool(), config.model_copy(update=shown))
    ids = sorted(rows["image_id"].to_pylist())
    inputs = {"pool": Table.open(store.pool(), "ingest").digest}
    choice = pa.table({"image_id": ids, "selected": [True] * len(ids)})
    write_table(store.coreset("all"), choice, stage="select", fingerprint={"inputs": inputs})
    return store


@pytest.fixture
def ward(tmp_path):
    folder = tmp_path / "ward"
    (folder / "a").mkdir(parents=True)
    for number in range(4):
        (folder / "a" / f"MILLER_{number}.png").write_bytes(encode_png(picture(number)))
    shutil.copy(CINE, folder / "cine.dcm")
    return folder


def test_files_are_copied_byte_for_byte_once(ward, tmp_path, capsys):
    store = ingest(tmp_path / "store", [ward])
    out = tmp_path / "out"
    shares = {"train": 0.5, "test": 0.5}
    written = export_dataset(store.root, "all", str(out), "originals", shares=shares)
    assert (sum(written.images.values()), written.files) == (6, 5)
    assert "not de-identified" in capsys.readouterr().err
    with (out / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        assert (out / row["file_name"]).read_bytes() == (
            ward / row["source"].partition("#")[0]
        ).read_bytes()
        assert "MILLER" not in row["file_name"]
    frames = [row for row in rows if "#" in row["source"]]
    assert [row["frame"] for row in frames] == ["0", "1"]
    assert len({row["file_name"] for row in frames}) == 1
    assert frames[0]["file_name"].endswith(".dcm")
    assert "None: these are the original files" in (out / "README.md").read_text()
    assert "`file_name`" in (out / "README.md").read_text()
    again = export_dataset(store.root, "all", str(out), "originals", shares=shares)
    assert again.already_done


@pytest.mark.parametrize("damage", ["other picture", "other bytes", "gone", "moved"])
def test_what_changed_since_the_ingest_is_named(ward, tmp_path, damage):
    store = ingest(tmp_path / "store", [ward])
    file = ward / "a" / "MILLER_2.png"
    words, kind = "MILLER_2.png' changed since the ingest", EchostillError
    if damage == "other picture":
        file.write_bytes(encode_png(picture(9)))
    elif damage == "other bytes":  # the same pixels: still not the file that was read
        file.write_bytes(file.read_bytes() + b"more")
    elif damage == "gone":
        file.unlink()
        words, kind = r"1 of 6 images are not there.*MILLER_2.png", UsageError
    else:
        ward.rename(tmp_path / "elsewhere")
        words, kind = r"cannot be listed.*--source", UsageError
    with pytest.raises(kind, match=words):
        export_dataset(store.root, "all", str(tmp_path / "out"), "originals")
    assert not (tmp_path / "out" / "export.json").exists()
    if damage == "moved":
        places = [str(tmp_path / "elsewhere")]
        done = export_dataset(store.root, "all", str(tmp_path / "out"), "originals", sources=places)
        assert sum(done.images.values()) == 6


def test_a_changed_cine_of_the_same_instance_is_found(ward, tmp_path):
    """Its ids come from the header, which is as it was: the pixels tell."""
    import pydicom

    store = ingest(tmp_path / "store", [ward])
    cine = pydicom.dcmread(ward / "cine.dcm")
    cine.decompress(generate_instance_uid=False)
    pixels = cine.pixel_array.copy()
    pixels[1, :200, :200] = 255 - pixels[1, :200, :200]
    cine.PixelData = pixels.tobytes()
    cine.save_as(ward / "cine.dcm")
    with pytest.raises(EchostillError, match=r"cine.dcm' changed.*other pixels"):
        export_dataset(store.root, "all", str(tmp_path / "out"), "originals")


def test_originals_of_a_deidentified_pool_need_a_word(ward, tmp_path):
    for path in sorted((POOL / "fetal_head").iterdir())[:3]:
        shutil.copy(path, ward / "a")
    store = ingest(tmp_path / "store", [ward / "a"], pixels="sector")
    images = Table.open(store.pool(), "ingest").rows
    assert 1 <= images <= 7
    command = ["export-coreset", "all", str(tmp_path / "out"), "--store", store.root]
    with pytest.raises(UsageError, match="--may-identify"):
        export_dataset(store.root, "all", str(tmp_path / "out"), "originals")
    done = CliRunner().invoke(app, [*command, "--as", "originals", "--may-identify"])
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "out" / "originals").iterdir())) == images
    for other in (["--as", "csv", "--may-identify"], ["--may-identify"], ["--source", "x"]):
        assert CliRunner().invoke(app, [*command, *other]).exception is not None


def test_hidden_names_are_found_again_with_the_sources(ward, tmp_path):
    store = ingest(tmp_path / "store", [ward], sources="hashed")
    with pytest.raises(UsageError, match="does not hold the names of its sources"):
        export_dataset(store.root, "all", str(tmp_path / "out"), "originals")
    done = export_dataset(
        store.root, "all", str(tmp_path / "out"), "originals", sources=[str(ward)]
    )
    assert (sum(done.images.values()), done.files) == (6, 5)


def test_archives_are_not_taken_apart(ward, tmp_path):
    packed = shutil.make_archive(str(tmp_path / "ward"), "zip", ward)
    store = ingest(tmp_path / "store", [packed])
    with pytest.raises(UsageError, match="lie in an archive, which is not taken apart"):
        export_dataset(store.root, "all", str(tmp_path / "out"), "originals")
