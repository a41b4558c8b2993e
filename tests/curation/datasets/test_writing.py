import csv
import json
import subprocess
import sys

import pytest

from echostill.curation.datasets.forms import FORMS
from echostill.curation.datasets.writing import BEGUN, RECORD, export_dataset
from echostill.platform.errors import UsageError
from echostill.platform.tables.storage import Storage

SHARES = {"train": 0.8, "test": 0.2}


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("form", FORMS)
def test_the_same_export_gives_the_same_bytes_and_is_done_once(coreset_store, tmp_path, form):
    first, second = tmp_path / "first", tmp_path / "second"
    made = export_dataset(coreset_store.root, "default", str(first), form, shares=SHARES)
    export_dataset(coreset_store.root, "default", str(second), form, shares=SHARES)
    assert files(first) == files(second)
    assert sum(made.images.values()) == len(coreset_store.pictures)
    again = export_dataset(coreset_store.root, "default", str(first), form, shares=SHARES)
    assert again.already_done
    assert "was already written" in str(again)
    assert again.images == made.images
    rows = list(csv.DictReader((first / "metadata.csv").read_text().splitlines()))
    assert {row["image_id"] for row in rows} == set(coreset_store.pictures)
    assert not (first / BEGUN).exists()


@pytest.mark.parametrize("form", FORMS)
def test_what_was_interrupted_is_finished(coreset_store, tmp_path, monkeypatch, form):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    export_dataset(coreset_store.root, "default", str(whole), form, shares=SHARES)
    for stop in (1, 2, 3, 4):  # files that each start comes to
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write", failing(stop))
            with pytest.raises(KeyboardInterrupt):
                export_dataset(coreset_store.root, "default", str(broken), form, shares=SHARES)
        assert not (broken / RECORD).exists()
    export_dataset(coreset_store.root, "default", str(broken), form, shares=SHARES)
    assert files(broken) == files(whole)


def failing(after):
    """`Storage.write`, interrupted before the write of that number."""
    write, count = Storage.write, 0

    def interrupted(storage, name, data):
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt
        write(storage, name, data)

    return interrupted


def test_a_lost_file_is_written_again(coreset_store, tmp_path):
    export_dataset(coreset_store.root, "default", str(tmp_path), "parquet")
    before = files(tmp_path)
    (tmp_path / "train/part-00000.parquet").unlink()
    assert not export_dataset(coreset_store.root, "default", str(tmp_path), "parquet").already_done
    assert files(tmp_path) == before


def test_another_export_is_replaced_only_when_asked(coreset_store, tmp_path):
    export_dataset(coreset_store.root, "default", str(tmp_path), "folder")
    own = tmp_path / "train" / "notes.txt"
    own.write_text("mine")
    with pytest.raises(UsageError, match=r"another export \(other form, splits\)"):
        export_dataset(coreset_store.root, "default", str(tmp_path), "csv", shares=SHARES)
    export_dataset(
        coreset_store.root, "default", str(tmp_path), "csv", shares=SHARES, overwrite=True
    )
    record = json.loads((tmp_path / RECORD).read_text())
    assert set(files(tmp_path)) == {*record["files"], RECORD, "train/notes.txt"}


def test_a_folder_with_other_files_is_left_alone(coreset_store, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds other files .thesis.txt"):
        export_dataset(coreset_store.root, "default", str(tmp_path), "csv", overwrite=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.txt"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"form": "zip"}, "expected folder, webdataset"), ({"classes": "mean"}, "expected label")],
)
def test_wrong_words_are_named(coreset_store, tmp_path, asked, message):
    with pytest.raises(UsageError, match=message):
        export_dataset(
            coreset_store.root, "default", str(tmp_path / "x"), **{"form": "csv", **asked}
        )
    assert not (tmp_path / "x").exists()


def test_an_unfinished_export_is_not_mixed_with_another(coreset_store, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", failing(3))
        with pytest.raises(KeyboardInterrupt):
            export_dataset(coreset_store.root, "default", str(tmp_path), "csv")
    with pytest.raises(UsageError, match="not finished"):
        export_dataset(coreset_store.root, "default", str(tmp_path), "folder", overwrite=True)


@pytest.mark.slow
def test_the_command(coreset_store, tmp_path):
    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "echostill.jobs.cli.main", "export-coreset", *map(str, words)],
            capture_output=True,
            text=True,
        )

    place = ["default", tmp_path / "out", "--store", coreset_store.root]
    done = run(*place, "--as", "hf", "--split", "train=0.9", "--split", "test=0.1")
    assert done.returncode == 0
    assert "60 images" in done.stdout
    for words in (["--split", "train=1"], ["--as", "hf", "--url", "http://127.0.0.1:1"]):
        refused = run(*place[: 2 if "--url" in words else 4], *words)
        assert refused.returncode == 2
        assert "--as" in refused.stderr
