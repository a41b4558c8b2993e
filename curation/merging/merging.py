"""Merge several stores into one, which is then a store like any other.

The sources are only read. Their names give the order, whatever that on the command line: the merged
pool goes on from the first, as if the images of the others had come later.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from echostill.curation.deidentification.pseudonyms import check_key
from echostill.curation.deidentification.review import NEEDS_REVIEW
from echostill.curation.ingestion.keys import KEY_SHARES
from echostill.curation.ingestion.settings import read_key_file
from echostill.curation.merging.planning import MergePlan, counted, plan_merge
from echostill.curation.merging.settings import MergeConfig
from echostill.curation.merging.stores import SourceStore, check_unchanged, open_stores
from echostill.curation.merging.writing import contributors, history_of, write_merge
from echostill.platform.config import result_relevant
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import NoImageError
from echostill.platform.preflight.checks import check_writable
from echostill.platform.shards.log import Accounting
from echostill.platform.shards.stage import ShardedStage
from echostill.platform.tables import lease
from echostill.platform.tables.fingerprint import (
    FINGERPRINT,
    Claim,
    Fingerprint,
    claimed,
    code_version,
    difference,
)
from echostill.platform.tables.storage import sha256
from echostill.platform.tables.store import CONFIGURATION, Store, describe_bytes
from echostill.platform.tables.table import MANIFEST

MERGE = "merge"


@dataclass(frozen=True)
class Merge:
    """What a merge did, or would do.

    Attributes:
        store: The merged store.
        rows: Of its pool.
        groups: Of its pool.
        size: Bytes of the stores' pools, about what the merged one takes on disk.
        contributors: Rows of the table of contributors.
        notes: What to know, a sentence each.
        already_done: Whether it was there before.
    """

    store: str
    rows: int
    groups: int
    size: int
    contributors: list[dict[str, object]]
    notes: list[str]
    already_done: bool = False

    def describe(self) -> str:
        """Say it in words."""
        done = "already done: " if self.already_done else ""
        lines = [
            f"{done}{self.rows} images of {self.groups} groups, {describe_bytes(self.size)}: "
            f"{self.store}"
        ]
        for one in self.contributors:
            lines.append(
                f"  {one['store']}: {one['rows']} images, {one['merged']} merged, "
                f"{one['duplicates']} duplicates of another store's, {one['withdrawn']} withdrawn; "
                f"{one['groups']} groups; organs: {one['organs']}; devices: {one['devices']}; "
                f"scores: {one['scores']}"
            )
        return "\n".join([*lines, *(f"{note[0].upper()}{note[1:]}." for note in self.notes)])


def merge(config: MergeConfig, *, dry_run: bool = False) -> Merge:
    """Merge stores into a new one, or finish a merge that was interrupted.

    Args:
        config: The stores, and what their organs and devices are called in the merged one.
        dry_run: Only say what would be merged.

    Raises:
        UsageError: The stores cannot be merged, or the target holds something else.
    """
    target = Store(config.store)
    key = read_key_file(config.key_file)
    if key is not None:
        check_key(key)
    sources = open_stores(target, config.stores, key)
    wanted = _fingerprint(config, sources)
    _check_target(target, wanted)
    if dry_run:
        return _result(target, plan_merge(config, sources, key or b""), config, done=False)
    check_writable(target)
    with lease.hold(target.storage, MERGE, "pool"):
        done = all(folder.exists(MANIFEST) for folder in (target.pool(), target.contributors()))
        plan = plan_merge(config, sources, key or b"")
        if not done:
            Claim(target.contributors(), wanted, MERGE, "a merged pool").take(False)
            stage = _stage(target, plan)
            records = write_merge(target, plan, stage, wanted.as_dict(), config.licence)
            check_unchanged(sources)
            target.record_format()
            stage.declare(records, Accounting.of(records.values(), 0), {})
        return _result(target, plan, config, done=done)


def _fingerprint(config: MergeConfig, sources: list[SourceStore]) -> Fingerprint:
    """Describe what a merged store depends on: not where the stores lie."""
    values = result_relevant(config)
    kept = {name: values[name] for name in ("map", "licence")}
    pools = {one.name: one.pool.digest for one in sources}
    return Fingerprint(kept, code_version(), {}, pools)


def _check_target(target: Store, wanted: Fingerprint) -> None:
    """Refuse a target that holds anything but (part of) this very merge."""
    kept = target.contributors()
    if kept.exists(FINGERPRINT):
        begun = claimed(kept)
        if changes := difference(begun.as_dict(), wanted.as_dict()):
            raise UsageError(
                f"refused: '{target.root}' is a merge of something else: {'; '.join(changes)}. "
                "Merge into another store."
            )
        return
    names = target.storage.list(recursive=True)
    strangers = [name for name in names if not name.startswith(f"{lease.FOLDER}/")]
    if strangers:
        raise UsageError(
            f"refused: '{target.root}' holds something else ('{strangers[0]}'): merge into a store "
            "that is not there yet. A store can be one of several that make a new one."
        )


def _stage(target: Store, plan: MergePlan) -> ShardedStage:
    """Claim the merged pool, which an ingest can go on with, and return its stage."""
    source = plan.first.source
    names = [one.name for one in plan.contributions]
    digests = {one.name: one.source.pool.digest for one in plan.contributions}
    files = sha256(json.dumps(digests, sort_keys=True).encode())
    own = Fingerprint(
        {**source.fingerprint.configuration, "source": names},
        source.fingerprint.code,
        source.fingerprint.weights,
        {**source.fingerprint.inputs, "files": files},
    )
    pool, there = target.pool(), source.store.pool()
    Claim(pool, own, "ingest", "a pool").take(False)
    for name in (CONFIGURATION, KEY_SHARES):
        if there.exists(name):
            values: Any = json.loads(there.read(name))
            changed = {**values, "source": names} if name == CONFIGURATION else values
            pool.write(name, json.dumps(changed, indent=1, sort_keys=True).encode())
    first = there.arrow_path(source.pool.part_names[0])
    return ShardedStage(
        name="ingest",
        table=pool,
        quarantine=target.quarantine("ingest"),
        schema=pq.read_schema(first, filesystem=there.filesystem).remove_metadata(),
        fingerprint=own,
        max_error_rate=1.0,
        expected_class=NoImageError.__name__,
        held_back_class=NEEDS_REVIEW,
        history=history_of(plan),
    )


def _result(target: Store, plan: MergePlan, config: MergeConfig, *, done: bool) -> Merge:
    found = plan.contributions
    return Merge(
        target.root,
        sum(one.merged for one in found),
        plan.groups,
        sum(one.size for one in found),
        contributors(plan, config.licence),
        list(_notes(plan, config.map.model_dump())),
        done,
    )


def _notes(plan: MergePlan, names: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Say what a merge means, a sentence each."""
    found, first = plan.contributions, plan.first
    apart = [one.name for one in found if not one.joins]
    notes = []
    if apart:
        notes.append(
            f"the groups of {', '.join(apart)} are under another key than those of '{first.name}' "
            "and are kept apart: a patient of two of these stores counts as two, and only images "
            "with the same pixels are found"
        )
    else:
        notes.append("the stores are under one key: a patient of several stores is one group")
    if apart and any(one.source.tombstones for one in found):
        notes.append(
            "images withdrawn from one store are recognised in another by id and pixels; of "
            "groups under another key others of the same patient are not: withdraw them there too"
        )
    for column, left in plan.unmapped.items():
        notes.append(f"{column}s without a new name in the map stay: {counted(left)}")
    unused = [f"{column} '{old}'" for column, new in names.items() for old in new if not new[old]]
    if unused:
        notes.append(f"an empty name makes unknown of: {', '.join(unused)}")
    if renamed := sum(one.renamed for one in found):
        notes.append(f"{renamed} image(s) have an id that another image has, and get a new one")
    if plan.carries_scores:
        notes.append(
            f"scores and proxy of '{first.name}' are kept: `echostill score` computes the others "
            "with them"
        )
    notes.append(
        "coresets, runs, reports, pins and leaks stay in their stores; `echostill duplicates` "
        "finds near copies across the stores"
    )
    return notes
