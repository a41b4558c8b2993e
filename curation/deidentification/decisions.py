"""What people decided on frames that were held back: a table that only grows; the latest counts.

A decision names the frame and the hash of its cleaned pixels, so an approval becomes invalid if
changed settings would show more of the frame.
"""

import datetime
import getpass
import uuid
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

from echostill.platform.errors import UsageError
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import decode_parquet, encode_parquet

Decision = Literal["approve", "reject", "undo"]
STATES: Mapping[str, str] = {"approve": "approved", "reject": "rejected", "undo": "open"}
OPEN = "open"

DECISION_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("cleaned", pa.string()),
        ("by", pa.string()),
        ("at", pa.string()),  # UTC, ISO 8601
        ("reason", pa.string()),
        ("decision", pa.string()),  # approve, reject or undo
    ]
)


def review_storage(store: Store) -> Storage:
    """Return the folder of the review table."""
    return store.storage.at("review")


def decisions_storage(store: Store) -> Storage:
    """Return the folder of the decisions: a file per call."""
    return review_storage(store).at("approvals")


def record(
    store: Store, decision: Decision, cleaned: Mapping[str, str], *, reason: str, by: str | None
) -> int:
    """Write down one decision on several frames.

    Args:
        store: The store.
        decision: ``undo`` takes an earlier decision back.
        cleaned: By image id, the hash of the pixels that were decided on.
        reason: Why.
        by: Who decided; default the user of this machine.

    Returns:
        Number of frames.

    Raises:
        UsageError: No reason is given.
    """
    if not reason.strip():
        raise UsageError("a decision needs a reason: --reason 'what makes these frames harmless'.")
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    about = {"by": by or getpass.getuser(), "at": at, "reason": reason, "decision": decision}
    rows = [{"image_id": key, "cleaned": value, **about} for key, value in cleaned.items()]
    # One file per call, so that people who decide at the same time do not overwrite each other.
    name = f"{at.replace(':', '')}-{uuid.uuid4().hex[:8]}.parquet"
    data = encode_parquet(pa.Table.from_pylist(rows, schema=DECISION_SCHEMA))
    decisions_storage(store).write(name, data)
    return len(rows)


def latest(store: Store) -> dict[str, dict[str, Any]]:
    """Return the latest decision on each frame, by image id; those taken back are left out."""
    storage = decisions_storage(store)
    found: dict[str, dict[str, Any]] = {}
    # Files are named by their time. Those of earlier releases have approvals only, and no column.
    for name in storage.list():
        for row in decode_parquet(storage.read(name)).to_pylist():
            found[row["image_id"]] = {"decision": "approve", **row}
    return {key: row for key, row in found.items() if row["decision"] != "undo"}


def state_of(row: Mapping[str, Any], decided: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return what was decided on a row of the review table: state, by whom, and why.

    A decision on other pixels than the row's does not count.
    """
    decision = decided.get(row["image_id"])
    if decision is None or decision["cleaned"] != row["cleaned"]:
        return {"state": OPEN, "decided_by": "", "decided_reason": ""}
    return {
        "state": STATES[decision["decision"]],
        "decided_by": decision["by"],
        "decided_reason": decision["reason"],
    }


def approved_pixels(store: Store) -> dict[str, str]:
    """Return the approvals in force: the hash of the cleaned pixels, by image id."""
    return {
        key: row["cleaned"] for key, row in latest(store).items() if row["decision"] == "approve"
    }
