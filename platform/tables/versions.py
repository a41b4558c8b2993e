"""Versions of a table that grows by further parts, while the parts that it has stay as they are.

The manifest lists the versions of a table that has grown: how many of its parts each had, and what
the stage says it was made from. What was made from an earlier version finds it by its digest.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from echostill.platform.tables.fingerprint import FINGERPRINT, Fingerprint, claimed
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import Table, digest_of_parts

VERSIONS = "versions"  # in the manifest; a table that never grew has none there


@dataclass(frozen=True)
class Version:
    """One version of a table.

    Attributes:
        number: From 1.
        parts: Parts of the table that belong to it, from the first.
        rows: Rows of these.
        digest: The table's digest while this version was the last.
        made_from: What the stage says of it, plain values.
    """

    number: int
    parts: int
    rows: int
    digest: str
    made_from: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Growth:
    """What a stage says of a version: the parts that the table then has, and what it is made from.

    Attributes:
        parts: Parts of the table up to and with this version.
        made_from: Plain values, kept in the manifest.
    """

    parts: int
    made_from: Mapping[str, Any] = field(default_factory=dict)


def version_entries(
    parts: Sequence[Mapping[str, Any]], history: Sequence[Growth]
) -> list[dict[str, Any]]:
    """Return what the manifest says of the versions; nothing of a table that never grew."""
    if len(history) < 2:
        return []
    return [
        {
            "version": number,
            "parts": growth.parts,
            "rows": sum(part["rows"] for part in parts[: growth.parts]),
            "digest": digest_of_parts(parts[: growth.parts]),
            "made_from": dict(growth.made_from),
        }
        for number, growth in enumerate(history, start=1)
    ]


def recounted(
    parts: Sequence[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the entries of versions whose parts have lost rows."""
    history = [Growth(entry["parts"], entry["made_from"]) for entry in entries]
    return version_entries(parts, history)


def versions(table: Table) -> list[Version]:
    """Return the versions of a table, the last of which is the table as it is."""
    parts = table.manifest["parts"]
    entries = table.manifest.get(VERSIONS) or []
    if not entries:
        return [Version(1, len(parts), table.rows, table.digest)]
    return [
        Version(
            entry["version"], entry["parts"], entry["rows"], entry["digest"], entry["made_from"]
        )
        for entry in entries
    ]


def latest(table: Table) -> Version:
    """Return the version that the table is in now."""
    return versions(table)[-1]


def version_with(table: Table, digest: str) -> Version | None:
    """Return the version that has a digest, None where there is none."""
    return next((one for one in versions(table) if one.digest == digest), None)


def at_version(table: Table, version: Version) -> Table:
    """Return a table as it was in one of its versions."""
    parts = table.manifest["parts"][: version.parts]
    earlier = (table.manifest.get(VERSIONS) or [])[: version.number]
    manifest = {**table.manifest, "parts": parts, "rows": version.rows, VERSIONS: earlier}
    return Table(table.storage, manifest)


def scored_pool(pool: Table, scores: Table) -> Table:
    """Return the pool in the version that the scores are of; as it is where that is unknown."""
    version = version_with(pool, made_from_pool(scores))
    return pool if version is None else at_version(pool, version)


def made_from_pool(table: Table) -> str:
    """Return the digest of the pool that the last version of a table was made from; "" if unknown.

    The fingerprint of a table that grows with the pool is that of its first version.
    """
    digest = latest(table).made_from.get("pool")
    return str(digest or table.manifest["fingerprint"].get("inputs", {}).get("pool", ""))


def continued(storage: Storage, wanted: Fingerprint, name: str, table: Table) -> Fingerprint:
    """Return the fingerprint with which a result goes on that was begun before its input grew.

    Args:
        storage: Folder of the result.
        wanted: What it depends on now.
        name: Name of the input in the fingerprint.
        table: The input.

    Returns:
        ``wanted`` with the version of the input that the result was begun from, or ``wanted`` as it
        is where nothing was begun, or from another table.
    """
    if not storage.exists(FINGERPRINT):
        return wanted
    begun = claimed(storage).inputs.get(name, "")
    if version_with(table, begun) is None:
        return wanted
    return replace(wanted, inputs={**wanted.inputs, name: begun})


def only_grown(storage: Storage, wanted: Fingerprint, inputs: Mapping[str, Table]) -> bool:
    """Say whether a result is out of date only because its input tables have grown since.

    Args:
        storage: Folder of the result.
        wanted: What it would depend on now.
        inputs: Input tables by their names in the fingerprint.
    """
    if not storage.exists(FINGERPRINT):
        return False
    before = json.loads(storage.read(FINGERPRINT))
    old = claimed(storage)
    earlier = dict(wanted.inputs)
    for name, table in inputs.items():
        if version_with(table, old.inputs.get(name, "")) is not None:
            earlier[name] = old.inputs[name]
    return bool(old != wanted and replace(wanted, inputs=earlier).digest == before["digest"])
