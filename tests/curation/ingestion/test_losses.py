import pytest

from echostill.curation.deidentification.review import NEEDS_REVIEW
from echostill.curation.deidentification.verdict import Verdict
from echostill.curation.ingestion.losses import describe_losses, kind_of


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("text", "held back for text"),
        ("sector", "held back for an unsure sector"),
        ("redaction", "held back for redaction of too much"),
        ("declared", "held back for what the file declares"),
        ("failed: ValueError", "held back since cleaning failed"),
    ],
)
def test_what_was_held_back_is_told_by_its_reason(reason, said):
    assert kind_of(NEEDS_REVIEW, Verdict(reason).describe()) == said


def test_errors_are_told_by_what_went_wrong():
    assert kind_of("DecodeError", "the file does not exist") == "missing files"
    assert kind_of("DecodeError", "the file is truncated") == "unreadable files or frames"
    assert kind_of("MemoryError", "the file could not be read") == "MemoryError"


def test_kinds_are_counted_the_most_frequent_first():
    kinds = ["missing files", "held back for text", "held back for text", "missing files"]
    kinds.append("held back for text")
    assert describe_losses(kinds, 16) == "5 of 16: 3 held back for text, 2 missing files"
    assert describe_losses([], 16) == ""
