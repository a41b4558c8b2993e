import csv
import hashlib
import hmac
import io
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image
from pydantic import ValidationError

from echostill.curation.deidentification import DeidentifySettings
from echostill.curation.manifests import common_folder
from echostill.curation.sources import (
    KEY_VARIABLE,
    Failure,
    IngestSettings,
    Source,
    digest,
    list_sources,
    read_source,
)
from echostill.platform.errors import UsageError
from echostill.platform.images import decode_staged
from echostill.platform.schemas import POOL_SCHEMA, QUARANTINE_SCHEMA

DICOM = Path(__file__).parents[2] / "examples/quickstart/pool/dicom"
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


# --- folders -------------------------------------------------------------------------------------


def test_a_folder_is_listed_by_name_without_hidden_and_unknown_files(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/y.tif", ".hidden.png", ".cache/x.png"):
        write_image(tmp_path / name)
    (tmp_path / "notes.md").write_text("no image")
    shutil.copy(CINE, tmp_path / "IM0001")
    assert names(source=str(tmp_path)) == ["IM0001", "a/y.tif", "a/z.JPG", "b.png"]
    assert names(source=str(tmp_path), recursive=False) == ["IM0001", "b.png"]


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    write_image(tmp_path / "outside/secret.png")
    write_image(tmp_path / "root/own.png")
    (tmp_path / "root/link.png").symlink_to(tmp_path / "outside/secret.png")
    (tmp_path / "root/folder").symlink_to(tmp_path / "outside")
    assert names(source=str(tmp_path / "root")) == ["own.png"]


def test_a_missing_source_names_the_nearest(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match="Did you mean 'images'"):
        list_sources(IngestSettings(source=str(tmp_path / "imags")))


def test_an_empty_folder_and_no_source_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="holds no images"):
        list_sources(IngestSettings(source=str(tmp_path)))
    with pytest.raises(UsageError, match="nothing to ingest"):
        list_sources(IngestSettings())


# --- lists and manifests -------------------------------------------------------------------------


def test_manifest_columns_are_carried_and_others_ignored(tmp_path):
    write_image(tmp_path / "a.png")
    manifest = write_csv(
        tmp_path / "m.csv",
        ["label", "file", "age", "group", "organ", "device"],
        [["benign", "a.png", "40", "007", "liver", "X1"]],
    )
    (row,) = read_all(source=manifest)
    assert (row["group_id"], row["organ"], row["device"]) == ("007", "liver", "X1")
    assert (row["label"], row["source"]) == ("benign", "a.png")


def test_parquet_text_list_and_path_column_list_the_same(tmp_path):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    pq.write_table(pa.table({"path": ["a.png", "b.png"], "group": [1, 2]}), tmp_path / "m.parquet")
    (tmp_path / "l.txt").write_text("# a comment\na.png\n\nb.png\n")
    listed = list_sources(IngestSettings(source=str(tmp_path / "m.parquet")))
    assert [(source.name, source.group) for source in listed] == [("a.png", "1"), ("b.png", "2")]
    assert names(source=str(tmp_path / "l.txt")) == ["a.png", "b.png"]


def test_a_missing_file_column_is_refused_with_the_nearest(tmp_path):
    manifest = write_csv(tmp_path / "m.csv", ["File", "group"], [["a.png", "1"]])
    with pytest.raises(UsageError, match=r"no column 'file'.*has: File, group.*Is it 'File'"):
        list_sources(IngestSettings(source=manifest))


def test_a_doubled_path_is_read_once_and_said(tmp_path):
    write_image(tmp_path / "a.png")
    manifest = write_csv(tmp_path / "m.csv", ["file"], [["a.png"], ["./a.png"]])
    row, failure = read_all(source=manifest)
    assert isinstance(row, dict)
    assert isinstance(failure, Failure)
    assert failure.error_class == "ListingError"
    assert len(read_all(source=(manifest, str(tmp_path / "a.png")))) == 3


def test_missing_files_and_empty_cells_become_failures(tmp_path):
    manifest = write_csv(tmp_path / "m.csv", ["file", "group"], [["gone.png", "1"], ["", "2"]])
    gone, unnamed = read_all(source=manifest)
    assert "does not exist" in gone.message
    assert "row 2 of 'm.csv' names no file" in unnamed.message


def test_root_moves_where_relative_paths_begin(tmp_path):
    write_image(tmp_path / "data/x/a.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/l.txt").write_text("x/a.png\n")
    root = str(tmp_path / "data")
    assert names(source=str(tmp_path / "lists/l.txt"), root=root) == ["x/a.png"]


def test_absolute_paths_never_become_names(tmp_path):
    for name in ("one/a.png", "two/a.png"):
        write_image(tmp_path / "data" / name)
    (tmp_path / "lists").mkdir()
    lines = [str(tmp_path / "data/one/a.png"), str(tmp_path / "data/two/a.png")]
    (tmp_path / "lists/l.txt").write_text("\n".join(lines))
    assert names(source=str(tmp_path / "lists/l.txt")) == ["one/a.png", "two/a.png"]


def test_common_folder():
    assert common_folder([]) == ""
    assert common_folder(["/a/b/c.png"]) == "/a/b/"
    assert common_folder(["/a/bc/1.png", "/a/bd/2.png", "/a/bc/d/3.png"]) == "/a/"
    assert common_folder(["s3://one/a/1.png", "s3://one/b/2.png"]) == "s3://one/"


def test_benchmark_files_are_excluded_by_content(tmp_path):
    write_image(tmp_path / "pool/a.png", seed=1)
    write_image(tmp_path / "pool/renamed.png", seed=2)
    write_image(tmp_path / "benchmark/b.png", seed=2)
    manifest = write_csv(tmp_path / "benchmark/m.csv", ["file"], [["b.png"]])
    assert names(source=str(tmp_path / "pool"), exclude=(manifest,)) == ["a.png"]


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
    with pytest.raises(UsageError, match="fits no name"):
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
    assert failures["bare.dcm"].message == "the file holds no pixel data"
    assert "max_pixels" in failures["large.png"].message
    table = pa.Table.from_pylist([f.row() for f in failures.values()], schema=QUARANTINE_SCHEMA)
    assert set(table["stage"].to_pylist()) == {"ingest"}
    assert not any(column.null_count for column in table.columns)


def test_an_unforeseen_error_stays_with_its_file(monkeypatch, tmp_path):
    write_image(tmp_path / "a.png")

    def explode(*_):
        raise RuntimeError("Citizen^Jan")

    monkeypatch.setattr("echostill.curation.sources.decode_image", explode)
    (failure,) = read_all(source=str(tmp_path))
    assert failure.error_class == "RuntimeError"
    assert "Citizen" not in failure.message


def test_frame_stride_and_one_failure_per_bad_frame(tmp_path):
    cine = DICOM / "examples_ybr_color.dcm"
    rows = read_all(source=str(cine), frame_stride=10)
    assert [row["frame"] for row in rows] == [0, 10, 20]
    dataset = pydicom.dcmread(cine)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=30))
    frames[10] = b"\xff\xd8 damaged "
    dataset.PixelData = pydicom.encaps.encapsulate(frames)
    dataset.save_as(tmp_path / "c.dcm")
    first, bad, last = read_all(source=str(tmp_path), frame_stride=10)
    assert isinstance(bad, Failure)
    assert (bad.source, bad.id) == ("c.dcm#10", rows[1]["image_id"])
    assert (first["image_id"], last["image_id"]) == (rows[0]["image_id"], rows[2]["image_id"])


def test_sources_are_plain_values():
    source = Source("/x/a.png", "a.png", group="g")
    assert Source(**vars(source)) == source
