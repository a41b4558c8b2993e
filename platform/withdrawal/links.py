"""What was made from what, after a withdrawal: tables have other digests then.

A table keeps the digests that it had before its withdrawals, with what it lost. Results that hold
no more of the withdrawn images than the table itself (scores, copies, coresets, the proxy) follow
it to its new digest. A student trained on a withdrawn image keeps the digest of what it has seen.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from echostill.platform.tables.fingerprint import FINGERPRINT, Fingerprint
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, Table
from echostill.platform.tables.versions import VERSIONS, versions
from echostill.platform.withdrawal.state import WITHDRAWN, Manifest, former_digests, withdrawals

_PARTS = ("configuration", "code", "weights", "inputs")


def note_withdrawal(storage: Storage, entry: Mapping[str, Any]) -> None:
    """Note in a table's manifest what it lost; once for each number."""
    manifest: Manifest = json.loads(storage.read(MANIFEST))
    before = withdrawals(manifest)
    if all(one["number"] != entry["number"] for one in before):
        write_json(storage, MANIFEST, {**manifest, WITHDRAWN: [*before, dict(entry)]})


def follow(
    storage: Storage, digests: Mapping[str, str], more: Mapping[str, str], about: str
) -> None:
    """Let a result name the new digests of the tables that it was made from.

    Args:
        storage: Folder of the result, with a manifest or a fingerprint.
        digests: New digest by the one of before.
        more: Inputs to add.
        about: What to say about these.
    """
    kept: dict[str, Any] | None = None
    if storage.exists(FINGERPRINT):
        before = json.loads(storage.read(FINGERPRINT))
        kept = _followed(before, digests, more)
        if more:
            said = {f"inputs.{name}": about for name in more}
            kept["about"] = {**kept.get("about", {}), **said}
        if kept != before:
            write_json(storage, FINGERPRINT, kept)
    if storage.exists(MANIFEST):
        manifest: Manifest = json.loads(storage.read(MANIFEST))
        after = dict(manifest)
        if "fingerprint" in manifest:
            after["fingerprint"] = _followed(manifest["fingerprint"] or {}, digests, more)
        if VERSIONS in manifest:
            after[VERSIONS] = [_version_followed(one, digests) for one in manifest[VERSIONS]]
        if after != manifest:
            write_json(storage, MANIFEST, after)


def _version_followed(entry: dict[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    made_from = {
        name: digests.get(value, value) if isinstance(value, str) else value
        for name, value in entry["made_from"].items()
    }
    return {**entry, "made_from": made_from}


def _followed(
    values: dict[str, Any], digests: Mapping[str, str], more: Mapping[str, str]
) -> dict[str, Any]:
    inputs = {name: digests.get(value, value) for name, value in values.get("inputs", {}).items()}
    changed = {**values, "inputs": {**inputs, **more}} if inputs or more else dict(values)
    if all(part in values for part in _PARTS):
        changed["digest"] = Fingerprint(**{part: changed[part] for part in _PARTS}).digest
    elif values.get("digest") in digests:  # of leaks, whose digest is the pool's
        changed["digest"] = digests[values["digest"]]
    return changed


def explain_withdrawal(kept: Storage, tables: Mapping[str, Table]) -> dict[str, Callable[[], str]]:
    """Say why a result's inputs have other digests, where that is because of a withdrawal.

    Args:
        kept: Folder of the result, with its fingerprint.
        tables: Its inputs, by their names in the fingerprint.

    Returns:
        For :class:`~echostill.platform.tables.fingerprint.Claim`.
    """
    if not kept.exists(FINGERPRINT):
        return {}
    inputs = json.loads(kept.read(FINGERPRINT)).get("inputs", {})
    found: dict[str, Callable[[], str]] = {}
    for name, table in tables.items():
        former = former_digests(table.manifest)
        if inputs.get(name) in former:
            lost = withdrawals(table.manifest)[former.index(inputs[name]) :]
            text = f"{name}: {describe_loss(lost)}, after this was made from it"
            found[f"inputs.{name}"] = partial(str, text)
    return found


def describe_loss(lost: list[dict[str, Any]]) -> str:
    """Say what a table lost by withdrawals."""
    rows = sum(entry["rows"] for entry in lost)
    chosen = sum(entry.get("chosen", 0) for entry in lost)
    days = ", ".join(dict.fromkeys(entry["at"][:10] for entry in lost))
    of_them = f", {chosen} of them chosen," if any("chosen" in entry for entry in lost) else ""
    images = "1 image was" if rows == 1 else f"{rows} images were"
    return f"{images} withdrawn{of_them} on {days}"


def table_digests(store: Store, places: list[str]) -> dict[str, list[str]]:
    """Return the digests of all versions of finished tables, by their places."""
    found = {}
    for place in places:
        storage = store.table(place)
        if storage.exists(MANIFEST):
            manifest = json.loads(storage.read(MANIFEST))
            if "parts" in manifest:
                found[place] = [one.digest for one in versions(Table(storage, manifest))]
    return found


def write_json(storage: Storage, name: str, values: Mapping[str, Any]) -> None:
    """Write plain values as the other files of records are written."""
    storage.write(name, json.dumps(values, indent=1, sort_keys=True).encode())
