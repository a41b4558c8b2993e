"""Withdraw images from a store: everywhere, or nowhere yet; the same command finishes it.

First it is written down what goes, with the tombstones that keep it out. From then on until that
note is deleted, nobody else reads the store. Every step looks for what is left to do, so that it
can be done again after an interruption at any point.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from echostill.curation.ingestion.patients.groups import count_groups
from echostill.curation.ingestion.summary import keep_summary, kept_summary
from echostill.curation.scoring.decoding import shards
from echostill.curation.withdrawal.elsewhere import (
    count_elsewhere,
    find_derived,
    remove_elsewhere,
    staged_elsewhere,
)
from echostill.curation.withdrawal.files import count_remains, find_remains, remove_remains
from echostill.curation.withdrawal.receipt import Receipt
from echostill.curation.withdrawal.request import (
    NothingFoundError,
    WithdrawalRequest,
    WithdrawnImages,
    check_user_key,
    find_images,
)
from echostill.curation.withdrawal.seen import NO, find_witnesses
from echostill.platform.errors import UsageError
from echostill.platform.preflight.checks import check_writable
from echostill.platform.shards.outcome import decode_units
from echostill.platform.shards.records import delete_record, read_records
from echostill.platform.tables.holdings import PROXY_RUN
from echostill.platform.tables.lease import WITHDRAW, hold
from echostill.platform.tables.store import Store, read_configuration
from echostill.platform.tables.table import MANIFEST, Table
from echostill.platform.withdrawal import state
from echostill.platform.withdrawal.links import (
    describe_loss,
    follow,
    note_withdrawal,
    table_digests,
    write_json,
)
from echostill.platform.withdrawal.tables import (
    count_rows,
    cut_of,
    rewrite_tables,
    tables_of,
)
from echostill.platform.withdrawal.tombstones import (
    Tombstones,
    read_tombstones,
    write_tombstones,
)

TEACHER_RUN = "runs/teacher"
NOTICED_SECONDS = 5.0  # in which a service on a bucket notices
_ROWS_PER_SHARD = 2048  # of scores, where their configuration was not kept


def withdraw(
    root: str,
    request: WithdrawalRequest | None,
    *,
    reason: str = "",
    key: bytes | None = None,
    dry_run: bool = False,
    report: Callable[[str, float], None] = lambda stage, fraction: None,
) -> Receipt:
    """Remove images from a store, with all that was derived from them in it.

    A withdrawal that was interrupted is finished first.

    Args:
        root: Folder or URI of the store.
        request: What to withdraw; None finishes an interrupted withdrawal.
        reason: Why; the receipt keeps it, so it must not name anybody.
        key: The user's key, for patients and groups of a store that was made with one.
        dry_run: Only say what would be removed, and where.
        report: Called with what is done, from when others cannot read the store any more, and the
            fraction of the work that is behind it.

    Returns:
        The receipt, which is also kept in ``withdrawn/receipts/``.

    Raises:
        UsageError: There is nothing of it, a key or a reason is missing, or a job works on the
            store.
    """
    store = Store(root, withdrawing=True)
    if not store.storage.exists():
        raise UsageError(f"there is no store '{store.root}'.")
    if dry_run:
        kept = _pending(store)
        return Receipt(**kept["receipt"]) if kept else _begun(store, request, reason, key)[0]
    check_writable(store)
    with hold(store.storage, WITHDRAW, state.FOLDER):
        resumed = None
        if (kept := _pending(store)) is not None:
            resumed = _finish(store, kept, report)
            if request is None:
                return resumed
        if request is not None and not reason.strip():
            raise UsageError("a withdrawal needs a reason: --reason 'consent was withdrawn'.")
        try:
            receipt, images, tombstones = _begun(store, request, reason, key)
        except NothingFoundError:
            if resumed is not None:
                return resumed
            raise
        kept = {
            "images": images.as_dict(),
            "tombstones": tombstones.as_dict(),
            "digests": table_digests(store, list(tables_of(store))),
            "receipt": asdict(receipt),
        }
        write_json(store.storage, state.PENDING, kept)
        return _finish(store, kept, report)


def _pending(store: Store) -> dict[str, Any] | None:
    if not store.storage.exists(state.PENDING):
        return None
    values: dict[str, Any] = json.loads(store.storage.read(state.PENDING))
    return values


def _begun(
    store: Store, request: WithdrawalRequest | None, reason: str, key: bytes | None
) -> tuple[Receipt, WithdrawnImages, Tombstones]:
    """Find everything that goes; nothing is written."""
    if request is None:
        raise UsageError(
            f"no withdrawal from '{store.root}' was interrupted: give --image, --group or "
            "--patient."
        )
    own = check_user_key(store, key, request.kind)
    images = find_images(store, request, own)
    traces = images.traces
    named = "|".join(re.escape(name) for name in (*traces.groups, request.value))
    if traces.mend(reason) != reason or re.search(rf"(?<!\w)({named})(?!\w)", reason):
        raise UsageError("the reason names what is withdrawn, and the receipt keeps it: reword it.")
    tombstones = read_tombstones(store.storage).added(
        traces.ids, images.contents, images.staged, images.asked, own, traces.files
    )
    rows = {
        place: count_rows(storage, cut_of(store, place, traces, tombstones))
        for place, storage in tables_of(store).items()
    }
    seen = find_witnesses(store, traces)
    files = count_remains(find_remains(store, traces, seen.trained))
    files += count_elsewhere([*staged_elsewhere(store, traces), *find_derived(images)])
    number = f"w-{len(store.storage.list(state.RECEIPTS)) + 1:06d}"
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Receipt.of(number, at, reason, images, rows, files, seen), images, tombstones


def _finish(store: Store, kept: Mapping[str, Any], report: Callable[[str, float], None]) -> Receipt:
    """Remove what is left; safe to do again from the beginning."""
    images = WithdrawnImages.read(kept["images"])
    receipt = Receipt(**kept["receipt"])
    traces = images.traces
    tombstones = Tombstones.of(kept["tombstones"])
    report("tables", 0.0)
    write_tombstones(store.storage, tombstones)
    store.storage.sweep()  # what killed writers left half-written may show it too
    rewrite_tables(store, traces, tombstones)
    report("files", 0.5)
    remove_remains(store, traces, find_remains(store, traces, set(receipt.runs)))
    remove_elsewhere([*staged_elsewhere(store, traces), *find_derived(images)])
    report("manifests", 0.9)
    _settle_scores(store)
    _settle_tables(store, receipt, kept["digests"])
    _settle_summary(store)
    finished = replace(receipt, finished=True)
    name = f"{state.RECEIPTS}/{receipt.number}.json"
    write_json(store.storage, name, asdict(finished))
    if not store.storage.is_local:
        time.sleep(NOTICED_SECONDS)
    store.storage.delete(state.PENDING)
    return finished


def _settle_scores(store: Store) -> None:
    """Forget the records of score shards that begin elsewhere in the pool's parts now.

    The table stays; only a retry computes these shards again.
    """
    scores, pool = store.scores(), store.pool()
    if not (pool.exists(MANIFEST) and scores.exists()):
        return
    rows = read_configuration(scores).get("rows_per_shard", _ROWS_PER_SHARD)
    wanted = [int(stop) - int(start) for _, start, stop in shards(Table.open(pool, "ingest"), rows)]
    for record in read_records(scores):
        units, index = record["units"], record["shard"]
        if units is not None:
            count = len(decode_units(units))
            if index >= len(wanted) or count != wanted[index]:
                delete_record(scores, index)


def _settle_tables(store: Store, receipt: Receipt, before: Mapping[str, list[str]]) -> None:
    """Let manifests say what tables lost, and what was made of them follow to the new digests."""
    chosen = {f"coresets/{one['name']}": one for one in receipt.coresets}
    after = table_digests(store, list(before))
    for place, (*_, digest) in before.items():
        if place in after and after[place][-1] != digest:
            loses = chosen.get(place)
            entry = {
                "number": receipt.number,
                "at": receipt.at,
                "digest": digest,
                "rows": receipt.rows.get(place, 0),
                **({"chosen": loses["chosen"], "budget": loses["budget"]} if loses else {}),
            }
            storage = store.table(place)
            note_withdrawal(storage, entry)
            if loses:
                _settle_budget(store, loses["name"])
    digests = {
        then: now
        for place, versions in before.items()
        for then, now in zip(versions, after.get(place, []), strict=False)
    }
    for place in before:
        storage = store.table(place)
        if not storage.exists(MANIFEST):
            continue
        lost = json.loads(storage.read(MANIFEST)).get(state.WITHDRAWN, [])
        more = {state.WITHDRAWN: receipt.number} if place in chosen else {}
        follow(storage, digests, more, describe_loss(lost) if more else "")
    for name in store.run_names():
        seen = receipt.runs.get(f"runs/{name}", NO)
        # Proxy and teacher are inputs of all the rest, which stays usable; see the receipt.
        if seen == NO or f"runs/{name}" in (PROXY_RUN, TEACHER_RUN):
            follow(store.run(name), digests, {}, "")


def _settle_budget(store: Store, name: str) -> None:
    """Let a coreset's manifest say how many images are chosen."""
    storage = store.coreset(name)
    manifest = json.loads(storage.read(MANIFEST))
    rows = Table(storage, manifest).read(["selected"])["selected"]
    left = int(pc.sum(rows.cast(pa.int64())).as_py() or 0)
    if manifest.get("budget", left) != left:
        write_json(storage, MANIFEST, {**manifest, "budget": left})


def _settle_summary(store: Store) -> None:
    """Count the groups of the pool again."""
    summary = kept_summary(store.sources())
    pool = store.pool()
    if summary.groups.count and pool.exists(MANIFEST):
        parts = Table.open(pool, "ingest").parts(["group_id", "source"])
        keep_summary(store.sources(), replace(summary, groups=count_groups(parts)))
