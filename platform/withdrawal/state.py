"""Whether a withdrawal from a store has begun and not ended: then nobody else may read it.

A withdrawal writes down what it removes before it removes anything, and deletes that when nothing
of it is left. Until then, tables and manifests may not fit each other.
"""

from typing import Any

from echostill.platform.errors import EchostillError
from echostill.platform.tables.storage import Storage

FOLDER = "withdrawn"  # of the store
PENDING = f"{FOLDER}/pending.json"
TOMBSTONES = f"{FOLDER}/tombstones.json"
RECEIPTS = f"{FOLDER}/receipts"
WITHDRAWN = "withdrawn"  # key in manifests: what a table lost
Manifest = dict[str, Any]


def withdrawals(manifest: Manifest) -> list[dict[str, Any]]:
    """Return what a table lost by withdrawals, oldest first."""
    found: list[dict[str, Any]] = manifest.get(WITHDRAWN, [])
    return found


def former_digests(manifest: Manifest) -> list[str]:
    """Return the digests that a table had before its withdrawals, oldest first."""
    return [entry["digest"] for entry in withdrawals(manifest)]


def check_not_pending(storage: Storage) -> None:
    """Refuse a store from which something is being withdrawn.

    Args:
        storage: The store.

    Raises:
        EchostillError: A withdrawal is at work, or was interrupted.
    """
    if storage.exists(PENDING):
        raise EchostillError(
            f"a withdrawal from the store '{storage.root}' has begun and not ended: run "
            f"`echostill withdraw {storage.root}` again to finish it."
        )
