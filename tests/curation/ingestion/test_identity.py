"""Whose a file's images are, from what the user says and what the header says."""

import numpy as np
import pytest

from echostill.curation.ingestion.identity import belonging
from echostill.curation.ingestion.keys import under_key
from echostill.curation.ingestion.settings import IngestSettings, Source
from echostill.platform.imaging.dicom import open_dicom
from echostill.platform.imaging.files import SourceFile

KEY = b"k" * 32
PIXELS = np.zeros((1, 20, 30), np.uint8)


@pytest.fixture
def owner(dicom):
    """Who owns a file: of a header's elements, and of what the user says."""

    def find(said=None, pattern=None, **elements):
        header = open_dicom(SourceFile("f", data=dicom(PIXELS, **elements))).header
        source = under_key(Source("/a/f.dcm", "a/f.dcm", **(said or {})), KEY)
        return belonging(source, header, IngestSettings(group_pattern=pattern), KEY)

    return find


def test_a_number_of_two_hospitals_is_two_patients(owner):
    groups = {
        owner(PatientID="12345", IssuerOfPatientID=issuer).group
        for issuer in ("HOSPITAL A", "HOSPITAL B", "Hospital  a", "", "NONE")
    }
    assert len(groups) == 3


def test_one_patient_in_two_spellings_is_one(owner):
    assert owner(PatientID="AB-77").group == owner(PatientID="ab-77 ").group
    assert owner(PatientID="0012345").group != owner(PatientID="12345").group


@pytest.mark.parametrize("word", ["ANONYMOUS", "0", "NA", "UNKNOWN", ""])
def test_without_a_patient_a_study_is_the_group(owner, word):
    first, again = (owner(PatientID=word, StudyInstanceUID="1.9.1") for _ in range(2))
    other = owner(PatientID=word, StudyInstanceUID="1.9.2")
    assert first.group == again.group != other.group != ""
    assert first.nobody == bool(word)


def test_the_user_comes_first_then_patients_then_studies(owner):
    header = {"PatientID": "P1", "StudyInstanceUID": "1.9"}
    said = [
        owner({"group": "own", "patient": "P2", "study": "S"}, r"^(\w+)/", **header),
        owner({"patient": "P2", "study": "S"}, r"^(\w+)/", **header),
        owner({"study": "S"}, r"^(\w+)/", **header),
        owner({"study": "S"}, **header),
        owner({"study": "S"}, **header | {"PatientID": "ANONYMOUS"}),
        owner({}, **header | {"PatientID": "ANONYMOUS"}),
    ]
    assert said[0].group == "own"
    assert said[1].group == owner({"patient": "p2"}).group
    assert said[2].group == "a"
    assert said[3].group == owner(**header).group
    assert len({one.group for one in said}) == 6
    # The study is known where a patient is the group, so that two of them in one are told.
    assert [bool(one.study) for one in said] == [False, True, False, True, False, False]


def test_a_name_of_the_user_reaches_no_worker():
    source = under_key(Source("/f", "f", patient="Doe", study="S 1"), KEY)
    assert "Doe" not in str(source.values())
    assert "S 1" not in str(source.values())
