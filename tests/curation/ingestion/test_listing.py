import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.ingestion.listing import list_files, list_sources
from echostill.curation.ingestion.manifests.paths import common_folder
from echostill.curation.ingestion.settings import KEY_VARIABLE, IngestSettings
from echostill.curation.ingestion.sources import Failure, read_source
from echostill.platform.errors import UsageError

CINE = Path(__file__).parents[3] / "examples/quickstart/pool/dicom/OBXXXX1A_rle_2frame.dcm"


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
    settings = IngestSettings(deidentify=DeidentifySettings(pixels="off"), **values)
    return [item for source in list_sources(settings) for item in read_source(source, settings)]


def names(**values):
    return [source.name for source in list_sources(IngestSettings(**values))]


def problems(**values):
    listed = list_sources(IngestSettings(**values))
    return {source.name: source.problem for source in listed if source.problem}


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
    said = problems(source=str(tmp_path / "root"))
    assert names(source=str(tmp_path / "root")) == ["folder", "link.png", "own.png"]
    assert "is a link that leads out of its folder" in said["link.png"]
    assert "is a link to a folder" in said["folder"]


def test_links_inside_the_folder_are_read_and_broken_ones_said(tmp_path):
    write_image(tmp_path / "own.png")
    (tmp_path / "again.png").symlink_to("own.png")
    (tmp_path / "nowhere.png").symlink_to("gone.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "up").symlink_to(tmp_path)
    said = problems(source=str(tmp_path))
    assert set(said) == {"nowhere.png", "loop.png", "up"}
    assert said["nowhere.png"] == "is a link that leads nowhere"
    assert "Too many levels of symbolic links" in said["loop.png"]


def test_what_is_no_regular_file_is_said_and_not_opened(tmp_path):
    write_image(tmp_path / "own.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    assert problems(source=str(tmp_path)) == {"pipe.png": "is not a regular file"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folders_and_files_are_said(tmp_path):
    write_image(tmp_path / "own.png")
    write_image(tmp_path / "closed/a.png")
    (tmp_path / "IM0001").write_bytes(b"x")
    (tmp_path / "IM0001").chmod(0)
    (tmp_path / "closed").chmod(0)
    try:
        said = problems(source=str(tmp_path))
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert "Permission denied" in said["IM0001"]
    assert "is a folder that cannot be read" in said["closed"]


def test_files_are_known_by_content_without_a_suffix(tmp_path):
    for name in ("scan.dat", "12.3.4", "plain"):
        write_image(tmp_path / "a.png")
        shutil.move(tmp_path / "a.png", tmp_path / name)
    (tmp_path / "DICOMDIR").write_bytes(CINE.read_bytes())
    (tmp_path / "list.csv").write_text("file")
    assert names(source=str(tmp_path)) == ["12.3.4", "plain", "scan.dat"]


def test_a_missing_source_names_the_nearest(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match="Did you mean 'images'"):
        list_sources(IngestSettings(source=str(tmp_path / "imags")))


def test_an_empty_folder_and_no_source_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="contains no images: expected"):
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
    manifest = write_csv(tmp_path / "m.csv", ["Fille", "group"], [["a.png", "1"]])
    with pytest.raises(UsageError, match=r"no column 'file'.*has: Fille, group.*Is it 'Fille'"):
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


def test_jsonl_lists_as_csv_does(tmp_path):
    write_image(tmp_path / "a.png")
    lines = ['{"path": "a.png", "organ": "liver", "group": 12}', "not json", "", "[1]", "{}"]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    listed = list_sources(IngestSettings(source=str(tmp_path / "m.jsonl")))
    first, *rest = listed
    assert (first.name, first.organ, first.group, first.problem) == ("a.png", "liver", "12", "")
    assert [source.problem for source in rest] == [
        "row 2 of 'm.jsonl' is no JSON object",
        "row 3 of 'm.jsonl' is no JSON object",
        "row 4 of 'm.jsonl' names no file",
    ]


def test_ids_of_a_manifest_are_kept_and_must_be_there_once(tmp_path):
    for seed, name in enumerate("abcd"):
        write_image(tmp_path / f"{name}.png", seed)
    rows = [["a.png", "7"], ["b.png", "8"], ["c.png", "7"], ["d.png", ""]]
    manifest = write_csv(tmp_path / "m.csv", ["file", "id"], rows)
    items = read_all(source=manifest)
    said = {item.source: item.message for item in items if isinstance(item, Failure)}
    assert said == {"c.png": "has the same id as 'a.png'", "d.png": "row 4 of 'm.csv' has no id"}
    shutil.move(tmp_path / "a.png", tmp_path / "moved.png")
    moved = write_csv(tmp_path / "n.csv", ["file", "id"], [["moved.png", "7"]])
    assert read_all(source=moved)[0]["image_id"] == items[0]["image_id"]


def test_patients_of_a_manifest_are_hidden_behind_the_key(tmp_path, monkeypatch):
    for seed, name in enumerate("abc"):
        write_image(tmp_path / f"{name}.png", seed)
    rows = [["a.png", "Doe 1"], ["b.png", "Doe 1"], ["c.png", "Roe 2"]]
    manifest = write_csv(tmp_path / "m.csv", ["file", "patient"], rows)
    assert len({item["group_id"] for item in read_all(source=manifest)}) == 3  # nothing to hide by
    monkeypatch.setenv(KEY_VARIABLE, "key")
    listed = list_sources(IngestSettings(source=manifest))
    assert "Doe" not in repr(listed)
    groups = [item["group_id"] for item in read_all(source=manifest)]
    assert groups[0] == groups[1] != groups[2]
    assert "Doe" not in str(groups)


@pytest.mark.parametrize(
    ("file", "root", "said"),
    [
        ("../outside.png", None, "outside of its folder"),
        ("x/../../outside.png", None, "outside of its folder"),
        ("../outside.png", "pool", "outside of its folder"),
        ("{tmp}/outside.png", "pool", "outside of 'root'"),
        ("{tmp}/outside.png", None, ""),
        ("../pool/inside.png", None, ""),
        ("a\0.png", None, "NUL"),
    ],
)
def test_paths_that_lead_out_of_their_root(tmp_path, file, root, said):
    write_image(tmp_path / "outside.png")
    write_image(tmp_path / "pool/inside.png")
    (tmp_path / "pool/l.jsonl").write_text(json.dumps({"file": file.format(tmp=tmp_path)}))
    root = str(tmp_path / root) if root else None
    (found,) = list_sources(IngestSettings(source=str(tmp_path / "pool/l.jsonl"), root=root))
    assert (said in found.problem) if said else not found.problem


def test_sizes_are_known_of_what_may_hold_many_frames(tmp_path):
    write_image(tmp_path / "a.png")
    shutil.copy(CINE, tmp_path / "c.dcm")
    listed = list_sources(IngestSettings(source=str(tmp_path)))
    assert [source.size for source in listed] == [0, CINE.stat().st_size]
    manifest = write_csv(tmp_path / "m.csv", ["file"], [["a.png"], ["c.dcm"]])
    again = list_sources(IngestSettings(source=manifest))
    assert [source.size for source in again] == [source.size for source in listed]


def test_masks_named_after_their_picture_are_passed_over_and_counted(tmp_path):
    """Also those that are all black, which their content does not tell."""
    for name in ("a.png", "sub/b (1).png", "alone_mask.png", "data/images/c.jpg", "masks/d.png"):
        write_image(tmp_path / name)
    black = np.zeros((20, 30), np.uint8)
    for name in ("a_mask.png", "sub/b (1)_mask_1.png", "data/masks/c.png", "data/GT/c.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(black).save(tmp_path / name)
    found = list_files(IngestSettings(source=str(tmp_path)))
    assert {source.name for source in found.sources} == {
        *("a.png", "sub/b (1).png", "alone_mask.png", "data/images/c.jpg", "masks/d.png")
    }
    assert +found.passed_over == {"masks or label maps": 4}


def test_what_a_folder_holds_beside_is_counted(tmp_path):
    write_image(tmp_path / "a.png")
    for name in ("b.PDF", "c.pdf", "DICOMDIR", ".hidden", "noname", "d.rar", "e.npz", "f.miller"):
        (tmp_path / name).write_bytes(b"PK\3\4 text")
    (tmp_path / ".git").mkdir()
    (tmp_path / "noname").write_bytes(b"text")
    found = list_files(IngestSettings(source=str(tmp_path)))
    assert [source.name for source in found.sources] == ["a.png"]
    assert {kind: number for kind, number in found.passed_over.items() if number} == {
        ".pdf": 2,
        "DICOMDIR": 1,
        "hidden files": 1,
        "hidden folders": 1,
        "without a suffix": 1,
        ".rar (not read)": 1,
        ".npz": 1,
        "with another suffix": 1,
    }
    (tmp_path / "a.png").unlink()
    with pytest.raises(UsageError, match=r"contains no images.*There are: 2 \.pdf"):
        list_files(IngestSettings(source=str(tmp_path)))
