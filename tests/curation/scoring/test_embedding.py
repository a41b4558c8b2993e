"""Features of files: the same from every way to name a model, and bad files cost one row."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from echostill.curation.deidentification.pseudonyms import Pseudonymiser
from echostill.curation.deidentification.review import ReviewGate
from echostill.curation.ingestion.settings import KEY_VARIABLE, IngestSettings, read_key
from echostill.curation.ingestion.worker import IngestWorker
from echostill.curation.scoring.embedding import embed, find_model
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.imaging.images import decode_staged, to_square
from echostill.platform.models import create_encoder, save_weights
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.store import Store, finish_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pictures, one cine of three frames, one damaged file."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    (root / "deeper").mkdir()
    for name, shape in (("a.png", (90, 140)), ("deeper/b.jpg", (200, 120, 3)), ("c.png", (64, 64))):
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(root / name)
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    cine(root / "cine.dcm", draw.integers(0, 256, (3, 48, 64), dtype=np.uint8))
    return root


def cine(path, frames):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["a cine"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    image.StudyInstanceUID = generate_uid(entropy_srcs=["a study"])
    image.Modality, image.NumberOfFrames = "US", len(frames)
    image.Rows, image.Columns = frames.shape[1:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
    image.PixelRepresentation, image.PixelData = 0, frames.tobytes()
    image.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with one finished run."""
    store = Store(str(tmp_path_factory.mktemp("embedding") / "store"))
    torch.manual_seed(0)
    run = store.run("student-0")
    save_weights(create_encoder("tinyusfm-micro"), run.local_path("model.safetensors"), {})
    made = Fingerprint({}, "0", {}, {})
    finish_run(run, stage="distill", files=["model.safetensors"], fingerprint=made)
    return store


def weights(store):
    return store.run("student-0").local_path("model.safetensors")


def model(store, name="student-0", **options):
    return find_model(name, **{"store": store.root, "weights": None, "form": None, **options})


def read(path):
    table = pq.read_table(path)
    return table, np.stack(table["feature"].to_numpy(zero_copy_only=False))


def test_a_row_per_image_and_frame_and_bad_files_apart(folder, store, tmp_path):
    target = str(tmp_path / "deep" / "features.parquet")
    done = embed([str(folder)], model(store), target, batch_size=2, progress=False)
    table, features = read(target)
    assert table["image"].to_pylist() == [
        *("a.png", "c.png", "cine.dcm#0", "cine.dcm#1", "cine.dcm#2", "deeper/b.jpg"),
    ]
    assert table["frame"].to_pylist() == [0, 0, 0, 1, 2, 0]
    assert features.shape == (6, 64)
    assert table.schema.field("feature").type == pa.list_(pa.field("element", pa.float32()), 64)
    held = pq.read_table(done.quarantine).to_pylist()
    assert [(row["stage"], row["source"]) for row in held] == [("embed", "broken.png")]
    for words in ("6 features of 64", "1 without one", "broken.png: the file"):
        assert words in done.describe()
    assert table.schema.metadata[b"echostill.weights"].decode() == model(store).digest


def test_a_feature_is_that_of_the_pool_row(folder, store, tmp_path, monkeypatch):
    """Ids and pixels as ingest makes them, with one key: the tables can be joined."""
    monkeypatch.setenv(KEY_VARIABLE, "a key of sixteen bytes or more")
    target = str(tmp_path / "features.parquet")
    embed([str(folder)], model(store), target, batch_size=3, progress=False)
    table, features = read(target)
    settings = IngestSettings(source=str(folder), deidentify={"pixels": "off"})
    from dataclasses import asdict

    from echostill.curation.ingestion.listing import list_sources

    pseudonymiser = Pseudonymiser(read_key(settings), hidden=True)
    worker = IngestWorker(settings, pseudonymiser, ReviewGate(), {})
    pool = worker.process([asdict(s) for s in list_sources(settings)]).rows
    assert pool["image_id"].to_pylist() == table["image_id"].to_pylist()
    encoder = create_encoder("tinyusfm-micro")
    from echostill.platform.models import load_weights

    load_weights(encoder, weights(store))
    for row, feature in zip(pool.to_pylist(), features, strict=True):
        pixels = torch.from_numpy(to_square(decode_staged(row["image"]), 128)[None]).float() / 255
        with torch.inference_mode():
            own = encoder.eval()(pixels).pooled[0].numpy()
        np.testing.assert_allclose(feature, own, rtol=1e-4, atol=1e-5)


def test_features_in_bfloat16_are_near_and_say_so(folder, store, tmp_path):
    files = {name: tmp_path / f"{name}.parquet" for name in ("auto", "float32", "bfloat16")}
    ways = ({}, {"weights": weights(store)})
    for way, name in zip(ways, ("student-0", "tinyusfm-micro"), strict=True):
        for precision, target in files.items():
            chosen = model(store, name, precision=precision, **way)
            embed([str(folder)], chosen, str(target), progress=False)
        assert files["auto"].read_bytes() == files["float32"].read_bytes()
        (exact, whole), (rough, half) = read(files["float32"]), read(files["bfloat16"])
        assert b"echostill.precision" not in exact.schema.metadata
        assert rough.schema.metadata[b"echostill.precision"] == b"bfloat16"
        lengths = np.linalg.norm(whole, axis=1) * np.linalg.norm(half, axis=1)
        assert not np.array_equal(whole, half)
        assert ((whole * half).sum(axis=1) / lengths).min() >= 0.999


def test_run_zoo_model_and_file_give_the_same(folder, store, tmp_path):
    ways = (
        model(store),
        model(store, "tinyusfm-micro", weights=weights(store)),
        model(store, weights(store)),
    )
    assert [way.form for way in ways] == ["run", "zoo", "safetensors"]
    found = []
    for number, way in enumerate(ways):
        embed([str(folder / "a.png")], way, str(tmp_path / f"{number}.parquet"), progress=False)
        found.append(read(tmp_path / f"{number}.parquet")[1])
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_the_batch_does_not_matter(folder, store, tmp_path):
    for size in (1, 4):
        target = str(tmp_path / f"{size}.parquet")
        embed([str(folder)], model(store), target, batch_size=size, progress=False)
    first, second = (read(tmp_path / f"{size}.parquet")[1] for size in (1, 4))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_an_old_list_of_bad_files_goes_when_there_are_none(folder, store, tmp_path):
    target = str(tmp_path / "features.parquet")
    embed([str(folder)], model(store), target, progress=False)
    assert (tmp_path / "features.quarantine.parquet").exists()
    embed([str(folder / "a.png")], model(store), target, progress=False)
    assert not (tmp_path / "features.quarantine.parquet").exists()


def test_when_nothing_can_be_read_it_fails(folder, store, tmp_path):
    with pytest.raises(EchostillError, match=r"none of 1 image.*broken\.png") as caught:
        embed([str(folder / "broken.png")], model(store), str(tmp_path / "f.parquet"))
    assert caught.value.exit_code == 1
    assert not (tmp_path / "f.parquet").exists()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("studnet-0", {}, "Did you mean 'student-0'"),
        ("usfm-micro", {}, "--weights"),
        ("no/such.onnx", {}, "no exported model"),
    ],
)
def test_an_unknown_model_is_named(store, name, options, words):
    with pytest.raises(UsageError, match=words):
        model(store, name, **options)


def test_the_target_must_be_parquet(folder, store, tmp_path):
    with pytest.raises(UsageError, match=r"is not a \.parquet file"):
        embed([str(folder)], model(store), str(tmp_path / "features.csv"))
