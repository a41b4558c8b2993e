"""What became no row of the pool, by kind and in words."""

from collections import Counter
from collections.abc import Iterable, Mapping

from echostill.curation.deidentification.review import NEEDS_REVIEW
from echostill.curation.deidentification.verdict import split_context
from echostill.curation.ingestion.blanks import BLANK
from echostill.platform.shards.log import Accounting
from echostill.platform.shards.records import Record
from echostill.platform.shards.stage import ShardedStage

_MANY_HELD_BACK = 0.2  # share of the frames above which ingest warns

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


def describe_quarantine(
    stage: ShardedStage, records: Mapping[int, Record], rows: int, store: str
) -> str:
    """Say what finished shards have in quarantine by kind, and what waits for review.

    Args:
        stage: Ingest.
        records: Of its shards.
        rows: How many there were, lost or not.
        store: Where it is.

    Returns:
        The end of a sentence; empty where nothing is.
    """
    kinds = [
        kind_of(row["error_class"], row["message"])
        for record in records.values()
        if record["quarantine"] is not None
        for row in stage.read(record).quarantined.to_pylist()
        if row["error_class"] != stage.expected_class  # told as passed over
    ]
    if not kinds:
        return ""
    message = f"; {describe_losses(kinds, rows)}"
    held_back = Accounting.of(records.values(), 0).held_back
    if held_back:
        message += f"; {held_back} held back for `echostill review {store}`"
    if held_back > _MANY_HELD_BACK * rows:
        message += (
            f". Warning: {held_back / rows:.0%} of the frames were held back. Look at some of "
            "them, and consider deidentify.text=redact or deidentify.masks"
        )
    return message
