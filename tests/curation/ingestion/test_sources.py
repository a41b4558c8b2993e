import csv
import hashlib
import hmac
import io
import json
import shutil
import unicodedata
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydicom
import pytest
from PIL import Image
from pydantic import ValidationError

from echostill.curation import IngestConfig
from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.ingestion.identity import digest
from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.settings import KEY_VARIABLE, IngestSettings, Source
from echostill.curation.ingestion.sources import Failure, read_source
from echostill.platform.config import load
from echostill.platform.errors import UsageError
from echostill.platform.imaging.frames import FrameSampling
from echostill.platform.imaging.images import decode_staged
from echostill.platform.tables.schemas import POOL_SCHEMA, QUARANTINE_SCHEMA

DICOM = Path(__file__).parents[3] / "examples/quickstart/pool/dicom"
CINE = DICOM / "OBXXXX1A_rle_2frame.dcm"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def write_image(path, seed=0, shape=(20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_csv(path, columns, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


def read_all(**values):
    # Here it is about reading; what de-identification does to pixels is in its own tests.
    values.setdefault("deidentify", DeidentifySettings(pixels="off"))
    settings = IngestSettings(**values)
    return [item for source in list_sources(settings) for item in read_source(source, settings)]


def names(**values):
    return [source.name for source in list_sources(IngestSettings(**values))]


# --- ids and groups ------------------------------------------------------------------------------


def test_ids_are_the_same_under_another_root_and_by_folder_or_list(tmp_path):
    for root in ("one", "two/deep"):
        for seed, name in enumerate(("a.png", "x/b.png")):
            write_image(tmp_path / root / name, seed=seed)
    (tmp_path / "one/l.txt").write_text("a.png\nx/b.png\n")
    found = [
        [row["image_id"] for row in read_all(source=str(tmp_path / where))]
        for where in ("one", "two/deep", "one/l.txt")
    ]
    assert found[0] == found[1] == found[2]
    assert all(len(image_id) == 32 for image_id in found[0])
    assert len(set(found[0])) == 2


def test_unicode_names_are_one_in_either_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(f, "Früh/Leber é.png") for f in ("NFC", "NFD"))
    write_image(tmp_path / "one" / composed)
    write_image(tmp_path / "two" / decomposed)
    first, second = (read_all(source=str(tmp_path / where))[0] for where in ("one", "two"))
    assert first["source"] == second["source"] == composed
    assert first["image_id"] == second["image_id"]


def test_digest_tells_the_parts_apart():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a") != digest("a", "")


def test_an_image_without_a_group_is_its_own(tmp_path):
    write_image(tmp_path / "a.png")
    (row,) = read_all(source=str(tmp_path))
    assert row["group_id"] == row["image_id"]


def test_group_pattern(tmp_path):
    for name in ("patient12_1.png", "patient12_2.png", "other.png"):
        write_image(tmp_path / name, seed=len(name))
    rows = {
        row["source"]: row for row in read_all(source=str(tmp_path), group_pattern=r"(patient\d+)")
    }
    assert rows["patient12_1.png"]["group_id"] == rows["patient12_2.png"]["group_id"] == "patient12"
    assert rows["other.png"]["group_id"] == rows["other.png"]["image_id"]
    with pytest.raises(UsageError, match="matches no file name"):
        list_sources(IngestSettings(source=str(tmp_path), group_pattern="clip_"))
    with pytest.raises(ValidationError, match="regular expression"):
        IngestSettings(source="x", group_pattern="(")


def test_dicom_ids_and_groups(tmp_path, monkeypatch):
    dataset = pydicom.dcmread(CINE)
    rows = read_all(source=str(CINE))
    assert [row["source"] for row in rows] == [f"{CINE.name}#0", f"{CINE.name}#1"]
    assert rows[1]["image_id"] == digest("dicom", str(dataset.SOPInstanceUID), "1")
    assert {row["group_id"] for row in rows} == {digest("study", str(dataset.StudyInstanceUID))}
    shutil.copy(CINE, tmp_path / "renamed.dcm")
    again = read_all(source=str(tmp_path))
    assert [row["image_id"] for row in again] == [row["image_id"] for row in rows]

    keyed = hmac.new(b"key", str(dataset.PatientID).encode(), hashlib.sha256).hexdigest()[:32]
    (tmp_path / "key").write_bytes(b"key\n")
    assert read_all(source=str(CINE), key_file=str(tmp_path / "key"))[0]["group_id"] == keyed
    monkeypatch.setenv(KEY_VARIABLE, "key")
    assert read_all(source=str(CINE))[0]["group_id"] == keyed
    assert not any(str(dataset.PatientID) in str(row.values()) for row in rows)


def test_a_missing_or_empty_key_file_is_refused_before_reading(tmp_path):
    (tmp_path / "empty").write_bytes(b"\n")
    for name in ("gone", "empty"):
        with pytest.raises(UsageError, match="key_file"):
            list_sources(IngestSettings(source=str(CINE), key_file=str(tmp_path / name)))


def test_manifest_then_header_then_default_name_the_device(tmp_path):
    shutil.copy(CINE, tmp_path / "c.dcm")
    manifest = write_csv(tmp_path / "m.csv", ["file", "organ"], [["c.dcm", "fetal"]])
    row = read_all(source=manifest)[0]
    assert (row["organ"], row["device"]) == ("fetal", "CX50")


# --- rows and failures ---------------------------------------------------------------------------


def test_a_row_describes_the_staged_image(tmp_path):
    pixels = write_image(tmp_path / "a.png", shape=(100, 400))
    (row,) = read_all(source=str(tmp_path), stage_side=64, organ="liver")
    staged = decode_staged(row["image"])
    assert staged.shape == (row["height"], row["width"]) == (16, 64)
    assert (row["original_height"], row["original_width"]) == pixels.shape
    assert row["mean"] == pytest.approx(staged.mean() / 255, abs=1e-6)
    assert row["contrast"] == pytest.approx(staged.std() / 255, abs=1e-6)
    assert (row["organ"], row["frame"], row["colour"]) == ("liver", 0, False)
    table = pa.Table.from_pylist([row], schema=POOL_SCHEMA)
    assert not any(column.null_count for column in table.columns)
    assert set(row) == set(POOL_SCHEMA.names)


def test_the_codec_is_a_choice_and_changes_no_id(tmp_path):
    write_image(tmp_path / "a.png", shape=(90, 90))
    rows = {
        codec: read_all(source=str(tmp_path), stage_codec=codec, stage_quality=50)[0]
        for codec in ("png", "jpeg", "webp")
    }
    starts = {codec: row["image"][:4] for codec, row in rows.items()}
    assert starts == {"png": b"\x89PNG", "jpeg": b"\xff\xd8\xff\xe0", "webp": b"RIFF"}
    assert len({(row["image_id"], row["content_hash"]) for row in rows.values()}) == 1
    for row in rows.values():
        assert decode_staged(row["image"]).shape == (90, 90)
    with pytest.raises(ValidationError, match="png"):
        IngestSettings(stage_codec="gif")


def test_frames_are_a_setting_of_the_command_line(tmp_path):
    cine = str(DICOM / "examples_ybr_color.dcm")
    overrides = [f"source={cine}", "frames.per_clip=3"]
    config = load(IngestConfig, "ingest", overrides=overrides)
    assert [row["frame"] for row in read_all(source=cine, frames=config.frames)] == [5, 15, 25]
    motion = read_all(source=cine, frames=FrameSampling(motion=0.02))
    assert 1 <= len(motion) < 30
    with pytest.raises(UsageError, match=r"frames.*every and motion exclude each other"):
        load(IngestConfig, "ingest", overrides=["frames={every: 2, motion: 0.1}"])


def test_frames_of_an_animation_are_one_group(tmp_path):
    frames = [Image.fromarray(np.full((9, 9), level, np.uint8)) for level in (10, 90, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    rows = read_all(source=str(tmp_path))
    assert [row["source"] for row in rows] == ["a.gif#0", "a.gif#1", "a.gif#2"]
    assert len({row["image_id"] for row in rows}) == 3
    assert len({row["group_id"] for row in rows}) == 1


def test_grey_stored_as_rgb_is_staged_grey(tmp_path):
    pixels = write_image(tmp_path / "plain.png")
    Image.fromarray(np.repeat(pixels[..., None], 3, axis=2)).save(tmp_path / "rgb.png")
    plain, rgb = read_all(source=str(tmp_path))
    assert plain["content_hash"] == rgb["content_hash"]
    assert not rgb["colour"]


def test_bad_files_cost_one_failure_each(tmp_path):
    write_image(tmp_path / "good.png")
    sink = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(sink, format="JPEG")
    (tmp_path / "truncated.jpg").write_bytes(sink.getvalue()[:-800])
    (tmp_path / "empty.png").write_bytes(b"")
    dataset = pydicom.dcmread(CINE)
    del dataset.PixelData
    dataset.save_as(tmp_path / "bare.dcm")
    write_image(tmp_path / "large.png", shape=(200, 200))
    items = read_all(source=str(tmp_path), max_pixels=10_000)
    failures = {item.source: item for item in items if isinstance(item, Failure)}
    assert [item["source"] for item in items if isinstance(item, dict)] == ["good.png"]
    assert "truncated" in failures["truncated.jpg"].message
    assert failures["empty.png"].message == "the file is empty (0 bytes)"
    assert "holds no pixel data" in failures["bare.dcm"].message
    assert "max_pixels" in failures["large.png"].message
    table = pa.Table.from_pylist([f.row() for f in failures.values()], schema=QUARANTINE_SCHEMA)
    assert set(table["stage"].to_pylist()) == {"ingest"}
    assert not any(column.null_count for column in table.columns)


def test_an_unforeseen_error_stays_with_its_file(monkeypatch, tmp_path):
    write_image(tmp_path / "a.png")

    def explode(*_):
        raise RuntimeError("Citizen^Jan")

    monkeypatch.setattr("echostill.curation.ingestion.sources.open_clip", explode)
    (failure,) = read_all(source=str(tmp_path))
    assert failure.error_class == "RuntimeError"
    assert "Citizen" not in failure.message


def test_frame_stride_and_one_failure_per_bad_frame(tmp_path):
    cine = DICOM / "examples_ybr_color.dcm"
    rows = read_all(source=str(cine), frames=FrameSampling(every=10))
    assert [row["frame"] for row in rows] == [0, 10, 20]
    dataset = pydicom.dcmread(cine)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=30))
    frames[10] = b"\xff\xd8 damaged "
    dataset.PixelData = pydicom.encaps.encapsulate(frames)
    dataset.save_as(tmp_path / "c.dcm")
    first, bad, last = read_all(source=str(tmp_path), frames=FrameSampling(every=10))
    assert isinstance(bad, Failure)
    assert (bad.source, bad.id) == ("c.dcm#10", rows[1]["image_id"])
    assert (first["image_id"], last["image_id"]) == (rows[0]["image_id"], rows[2]["image_id"])


def test_sources_are_plain_values():
    source = Source("/x/a.png", "a.png", group="g")
    assert Source(**source.values()) == source
    assert json.loads(json.dumps(asdict(source)))["file"] == source.file
