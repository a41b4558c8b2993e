import hashlib
import hmac

import pytest

from echostill.curation.ingestion.patients.spelling import (
    Spellings,
    is_placeholder,
    patient_group,
    same_device,
    same_group,
    same_organ,
)

KEY = b"k" * 32


@pytest.mark.parametrize(
    ("first", "second"),
    [("12345", "12345.0"), ("12345", " 12345.00 "), ("AB-77", "ab-77"), ("Doe  1", "doe 1")],
)
def test_one_patient_in_two_spellings_is_one_group(first, second):
    assert patient_group(first, KEY) == patient_group(second, KEY) != ""


@pytest.mark.parametrize(
    ("first", "second"), [("012", "12"), ("12.5", "12"), ("AB-77", "AB77"), ("1.0a", "1a")]
)
def test_what_may_be_two_patients_stays_two(first, second):
    assert patient_group(first, KEY) != patient_group(second, KEY)


def test_a_group_is_the_keyed_hash_of_the_plain_id():
    """As it always was: what is stored already must keep its groups."""
    assert patient_group("204", KEY) == hmac.new(KEY, b"204", hashlib.sha256).hexdigest()[:32]
    assert patient_group("204", None) == ""


def test_who_gave_the_number_belongs_to_it():
    one, two = (patient_group("12345", KEY, name) for name in ("HOSPITAL A", "HOSPITAL B"))
    assert len({one, two, patient_group("12345", KEY)}) == 3
    assert patient_group("12345", KEY, "hospital  a") == one
    assert patient_group("12345", KEY, "N/A") == patient_group("12345", KEY)


@pytest.mark.parametrize(
    "word",
    [
        *("ANONYMOUS", "Anonymous^Patient", "anonymized", "ANONYMISED", "anon", "De-identified"),
        *("0", "000000", "0.0", "", "-", "?", "***", "XXXX", "NA", "n/a", "NaN", "None", "null"),
        *("UNKNOWN", "unknown patient", "no name", "REMOVED", "test", "Patient ID", "no id"),
    ],
)
def test_words_for_nobody_are_no_patient(word):
    assert is_placeholder(word)
    assert patient_group(word, KEY) == ""


@pytest.mark.parametrize(
    "word", ["P001", "ANON123", "10", "anonymous7", "Nana", "7", "Ona", "case1"]
)
def test_pseudonyms_are_patients(word):
    assert not is_placeholder(word)


def test_organs_devices_and_groups():
    assert {same_organ(text) for text in ("Liver", " liver ", "LIVER")} == {"liver"}
    assert {same_organ(text) for text in ("N/A", "nan", "", "-", "Unknown")} == {""}
    assert same_organ("Fetal  Head") == "fetal head"
    assert (same_device(" GE  Logiq "), same_device("none")) == ("GE Logiq", "")
    assert (same_group("007"), same_group("7.0"), same_group("NA")) == ("007", "7", "")
    spellings = Spellings()
    assert [spellings.of(text) for text in ("Logiq E9", "LOGIQ E9", "CX50")] == [
        "Logiq E9",
        "Logiq E9",
        "CX50",
    ]
