"""Scores of a pool that has grown: only what is new is computed, with the first proxy."""

from echostill.curation.scoring.decoding import shards
from echostill.platform.tables.fingerprint import Fingerprint, claimed
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, Table
from echostill.platform.tables.versions import (
    Growth,
    at_version,
    latest,
    made_from_pool,
    version_with,
    versions,
)

PROXY = "proxy"


def begun_with(wanted: Fingerprint, pool: Table) -> Table:
    """Return the pool in the version that a result was begun with."""
    version = version_with(pool, wanted.inputs["pool"])
    return pool if version is None else at_version(pool, version)


def history_of(pool: Table, wanted: Fingerprint, rows_per_shard: int) -> tuple[Growth, ...]:
    """Return the versions of scores that go on with the pool, from the one they were begun with."""
    begun = version_with(pool, wanted.inputs["pool"])
    return tuple(
        Growth(
            len(shards(at_version(pool, version), rows_per_shard)),
            {"pool": version.digest, "pool version": version.number},
        )
        for version in versions(pool)
        if begun is not None and version.number >= begun.number
    )


def describe_growth(store: Store, pool: Table) -> str:
    """Say what of the pool is not scored yet, and with what it is; empty without such scores."""
    if not store.scores().exists(MANIFEST):
        return ""
    scored = version_with(pool, made_from_pool(store.open_scores()))
    if scored is None or scored.number == latest(pool).number:
        return ""
    begun = version_with(pool, claimed(store.scores()).inputs.get("pool", ""))
    first = scored.number if begun is None else begun.number
    return (
        f"{pool.rows - scored.rows} image(s) new since version {scored.number} of the pool, scored "
        f"with the proxy and teacher of version {first} ('{store.run(PROXY).root}'); the scores of "
        f"the {scored.rows} others stay as they are"
    )
