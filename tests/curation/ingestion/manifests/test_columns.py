import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostill.curation.ingestion.manifests.columns import (
    MEANINGS,
    likely,
    manifest_columns,
    match_columns,
    misspelt,
)
from echostill.platform.errors import UsageError


@pytest.mark.parametrize(
    ("written", "meaning"),
    [
        *((name, "patient") for name in ("Patient", "patient_id", "PatientID", "PATIENT ID")),
        *((name, "patient") for name in ("Subject", "subject-id", "case", "Case_ID", "pid", "MRN")),
        *((name, "study") for name in ("Study", "StudyInstanceUID", "exam_id")),
        *((name, "organ") for name in ("Organ", "ORGANS", "BodyPartExamined", "body part")),
        *((name, "device") for name in ("Device", "scanner", "Manufacturer Model Name")),
        *((name, "label") for name in ("Label", "class", "Diagnosis", "labels")),
        *((name, "group") for name in ("Group", "group_id")),
        *((name, "file") for name in ("File", "file_name", "Image Path", "PATH", "filename")),
        ("ID", "id"),
    ],
)
def test_usual_names_are_known_in_any_spelling(written, meaning):
    assert match_columns([written]).used == {written: meaning}
    assert meaning in MEANINGS


def test_of_several_columns_with_one_meaning_the_best_is_used_and_the_others_named():
    columns = match_columns(["path", "Subject", "PatientID", "file", "patient", "age", "Patient"])
    assert columns.used == {"file": "file", "patient": "patient"}
    assert columns.ignored == ("path", "Subject", "PatientID", "age", "Patient")
    assert columns.values({"file": " a.png ", "patient": 7, "age": 1}) == {
        "file": "a.png",
        "patient": "7",
    }
    said = match_columns(["File", "PatientID", "age"]).describe()
    assert said == "uses File (as file), PatientID (as patient); ignores age"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *(("pateint", "patient"), ("Patiend_ID", "patient"), ("subjct", "patient")),
        *(("orgam", "organ"), ("devcie", "device"), ("lable", "label"), ("gruop", "group")),
    ],
)
def test_a_misspelt_column_is_refused_with_the_name_that_it_is_near(written, meant):
    with pytest.raises(UsageError, match=f"column '{written}'.*is it '{meant}'"):
        manifest_columns("m.csv", ["file", written])
    # Where the meaning is there already, the other column is only ignored.
    assert manifest_columns("m.csv", ["file", meant, written]).ignored == (written,)


@pytest.mark.parametrize(
    "name",
    [
        *("age", "sex", "gender", "mask", "split", "fold", "origin", "grade", "title", "base"),
        *("order", "site", "view", "frame", "birads", "patient_age", "patient_sex", "label2"),
        *("image_id", "quality", "center", "notes", "vendor", "width", "series_uid", "status"),
    ],
)
def test_other_names_are_no_slips(name):
    assert misspelt(name) == ""
    assert manifest_columns("m.csv", ["file", name]).ignored == (name,)


@given(st.text("abcdefgh", min_size=3, max_size=8), st.integers(0, 7), st.sampled_from("xyz"))
def test_one_slip_is_found_wherever_it_is(word, place, letter):
    place = min(place, len(word) - 1)
    slips = {
        word[:place] + letter + word[place:],
        word[:place] + letter + word[place + 1 :],
        word[:place] + word[place + 1 :],
        word[:place] + word[place : place + 2][::-1] + word[place + 2 :],
    } - {word}
    assert {likely(slip, [word]) for slip in slips} == {word}
    assert likely(f"{letter}{word}{letter}", [word]) == ""


def test_without_files_the_columns_are_named():
    with pytest.raises(UsageError, match=r"no column 'file'.*it has: Patient, Fiel.*Is it 'Fiel'"):
        manifest_columns("m.csv", ["Patient", "Fiel"])
    with pytest.raises(UsageError, match="it has: none"):
        manifest_columns("m.csv", [])
