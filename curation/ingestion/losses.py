"""What became no row of the pool, by kind and in words."""

from collections import Counter
from collections.abc import Iterable

from echostill.curation.deidentification.review import NEEDS_REVIEW
from echostill.curation.deidentification.verdict import split_context
from echostill.curation.ingestion.blanks import BLANK

_HELD_BACK = {
    "text": "held back for text",
    "sector": "held back for an unsure sector",
    "redaction": "held back for redaction of too much",
    "declared": "held back for what the file declares",
}
_MESSAGES = (("does not exist", "missing files"), ("listed more than once", "listed twice"))
_CLASSES = {
    "DecodeError": "unreadable files or frames",
    "ListingError": "not to be read",
    "RepeatedId": "repeated images",
    BLANK: "blank after cleaning",
}


def kind_of(error_class: str, message: str) -> str:
    """Name the kind of a quarantined row, in words that follow its number."""
    if error_class == NEEDS_REVIEW:
        verdict, _ = split_context(message)
        return _HELD_BACK.get(verdict.reason, "held back since cleaning failed")
    for part, kind in _MESSAGES:
        if part in message:
            return kind
    return _CLASSES.get(error_class, error_class)


def describe_losses(kinds: Iterable[str], total: int) -> str:
    """Say what was lost, such as ``5 of 16: 3 held back for text, 2 missing files``.

    Args:
        kinds: Of every loss, see :func:`kind_of`.
        total: How many there were, lost or not.

    Returns:
        The sentence; empty where nothing was lost.
    """
    counts = Counter(kinds)
    if not counts:
        return ""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    said = ", ".join(f"{number} {kind}" for kind, number in ordered)
    return f"{counts.total()} of {total}: {said}"
