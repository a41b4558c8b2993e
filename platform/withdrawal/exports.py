"""What was written out of a store: a withdrawal cannot reach it, and names it."""

import json
from contextlib import suppress
from datetime import UTC, datetime

from echostill.platform.errors import EchostillError
from echostill.platform.tables.storage import sha256
from echostill.platform.tables.store import Store

EXPORTS = "exports"  # folder of the store


def record_export(store: Store, coreset: str, digest: str, to: str, form: str) -> None:
    """Note in a store that a coreset was written elsewhere; a store may be read-only.

    Args:
        store: The store.
        coreset: Name of the coreset.
        digest: Its digest.
        to: Folder, file or URI.
        form: Such as ``csv`` or ``webdataset``.
    """
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    record = {"to": to, "form": form, "coreset": coreset, "digest": digest, "at": at}
    name = f"{EXPORTS}/{sha256(f'{to} {digest}'.encode())[:16]}.json"
    with suppress(OSError, EchostillError):
        store.storage.write(name, json.dumps(record, indent=1).encode())
