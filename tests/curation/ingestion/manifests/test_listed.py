import csv

import numpy as np
import pytest
from PIL import Image

from echostill.curation.ingestion.listing import list_files
from echostill.curation.ingestion.settings import IngestSettings
from echostill.curation.ingestion.sources import Failure, read_source
from echostill.platform.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(("a.png", "sub/Größe.png", "c.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path


def listed(folder, columns, *rows):
    with open(folder / "m.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return list_files(IngestSettings(source=str(folder / "m.csv")))


def test_paths_as_windows_writes_them_are_found(folder):
    found = listed(folder, ["file"], ["sub\\Größe.png"], [".\\a.png"], ["C:\\data\\c.png"])
    assert [source.name for source in found.sources[:2]] == ["sub/Größe.png", "a.png"]
    assert "on a drive of Windows" in found.sources[2].problem
    (folder / "odd\\name.png").write_bytes((folder / "a.png").read_bytes())
    assert listed(folder, ["file"], ["odd\\name.png"]).sources[0].name == "odd\\name.png"


def test_columns_are_named_and_their_values_folded(folder):
    found = listed(
        folder,
        ["Organ", "File", "PatientID", "Device", "age", "Study"],
        ["Liver ", "a.png", "12345.0", "GE  Logiq", "40", "S1"],
        ["LIVER", "c.png", "12345", "ge logiq", "41", "S1"],
        ["N/A", "sub/Größe.png", "ANONYMOUS", "none", "", "S2"],
    )
    assert [(one.organ, one.device) for one in found.sources] == [
        ("liver", "GE Logiq"),
        ("liver", "GE Logiq"),
        ("", ""),
    ]
    (said,) = found.tables
    assert said == (
        "'m.csv' uses Organ (as organ), File (as file), PatientID (as patient), Device (as device),"
        " Study (as study); ignores age"
    )
    (doubt,) = found.warnings
    assert "1 of 3 rows of 'm.csv' name no patient" in doubt
    rows = [read_source(one, IngestSettings(), b"k" * 32)[0] for one in found.sources]
    groups = ["?" if isinstance(row, Failure) else row["group_id"] for row in rows]
    assert len(set(groups)) <= 3  # frames of noise may be held back


def test_rows_that_contradict_each_other_are_told(folder):
    found = listed(
        folder,
        ["file", "patient", "organ"],
        ["a.png", "P1", "liver"],
        ["a.png", "P2", "Liver"],
        ["./a.png", "P1", "liver"],
    )
    _, second, third = found.sources
    assert "says otherwise of patient; the first row counts" in second.problem
    assert "it is read once" in third.problem
    assert found.warnings == ["1 row(s) contradict an earlier row of the same file, which counts"]


def test_a_spreadsheet_is_refused_by_name(folder):
    (folder / "m.xlsx").write_bytes(b"PK\3\4")
    with pytest.raises(UsageError, match=r"is a spreadsheet.*save it as CSV"):
        list_files(IngestSettings(source=str(folder / "m.xlsx")))
