"""The tables of a merged store: written so that a kill at any point leaves what can be continued.

The pool of the first store comes first, with its versions, its key and, where no row of it is lost,
its scores; each further store makes a version more, as if its files had come later. A part in which
nothing changes is copied to the byte. The pool's manifest is written last and declares the merge.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from echostill.curation.deidentification.decisions import decisions_storage
from echostill.curation.deidentification.review import NEEDS_REVIEW, write_review
from echostill.curation.deidentification.verdict import split_context
from echostill.curation.ingestion.growth.changes import FILE, LISTING_SCHEMA, keep
from echostill.curation.ingestion.growth.known import UNKNOWN, KnownFiles, add_version
from echostill.curation.ingestion.patients.groups import count_groups
from echostill.curation.ingestion.summary import Summary, keep_summary, kept_summary
from echostill.curation.merging.planning import Contribution, MergePlan, Part, counted
from echostill.platform.errors import EchostillError
from echostill.platform.shards.outcome import Outcome
from echostill.platform.shards.records import Record, write_record
from echostill.platform.shards.stage import ShardedStage
from echostill.platform.tables.holdings import PROXY_RUN
from echostill.platform.tables.schemas import CONTRIBUTORS_SCHEMA, ORIGINS_SCHEMA
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import (
    MANIFEST,
    Table,
    decode_parquet,
    digest_of_parts,
    encode_parquet,
    write_table,
)
from echostill.platform.tables.versions import Growth, versions
from echostill.platform.withdrawal.links import follow
from echostill.platform.withdrawal.tombstones import Tombstones, write_tombstones

Values = Mapping[str, object]


def history_of(plan: MergePlan) -> tuple[Growth, ...]:
    """Return the versions of the merged pool: those of the first store, then one of each other."""
    pool = plan.first.source.pool
    found = [Growth(one.parts, {**one.made_from}) for one in versions(pool)]
    for one in plan.contributions[1:]:
        found.append(Growth(found[-1].parts + len(one.parts), {"store": one.name}))
    return tuple(found)


def write_merge(
    store: Store,
    plan: MergePlan,
    stage: ShardedStage,
    made_from: Values,
    licences: Mapping[str, str],
) -> dict[int, Record]:
    """Write all tables of a merged store, or what is left of them, but for the pool's manifest.

    Args:
        store: The merged store.
        plan: What each store brings.
        stage: Of the merged pool.
        made_from: Fingerprint of the merge.
        licences: By name of the store.

    Returns:
        The records of the pool's shards, for the manifest that declares the merge.
    """
    if plan.tombstones:
        write_tombstones(store.storage, plan.tombstones)
    records = _write_parts(plan, stage)
    _write_decisions(store, plan)
    write_review(store, stage, records)
    _write_listings(store, plan, stage.history)
    columns = ["group_id", "source"]
    summary = Summary(
        count_groups(
            Table(stage.table, {}).read_part(records[index]["part"]["file"], columns)
            for index in sorted(records)
        ),
        _passed_over(plan),
    )
    keep_summary(store.sources(), summary)
    if plan.carries_scores:
        _copy_scores(store, plan, records)
    write_table(
        store.origins(),
        pa.concat_tables(_origins(plan, stage, records)).combine_chunks(),
        stage="merge",
        fingerprint=dict(made_from),
    )
    write_table(
        store.contributors(),
        pa.Table.from_pylist(contributors(plan, licences), schema=CONTRIBUTORS_SCHEMA),
        stage="merge",
        fingerprint=dict(made_from),
    )
    return records


def contributors(plan: MergePlan, licences: Mapping[str, str]) -> list[dict[str, object]]:
    """Return the rows of the table of contributors."""
    return [
        {
            "store": one.name,
            "fingerprint": one.source.pool.digest,
            "groups_join": one.joins,
            "rows": one.source.pool.rows,
            "merged": one.merged,
            "duplicates": one.copies,
            "withdrawn": one.withdrawn,
            "quarantined": one.quarantined,
            "groups": len(one.groups),
            "organs": counted(one.kept_organs),
            "devices": counted(one.kept_devices),
            "scores": _scores(plan, one),
            **{kind: ", ".join(_names(one, kind)) for kind in ("coresets", "runs", "reports")},
            "licence": licences.get(one.name, ""),
        }
        for one in plan.contributions
    ]


def _scores(plan: MergePlan, one: Contribution) -> str:
    if not one.source.store.scores().exists(MANIFEST):
        return "none"
    return "kept" if one is plan.first and plan.carries_scores else "computed anew by score"


def _names(one: Contribution, kind: str) -> list[str]:
    store = one.source.store
    if kind == "coresets":
        return store.coreset_names()
    entries = store.storage.list(kind, recursive=True)
    return sorted({entry.split("/")[1] for entry in entries if entry.endswith(f"/{MANIFEST}")})


def _write_parts(plan: MergePlan, stage: ShardedStage) -> dict[int, Record]:
    """Write the parts of pool and quarantine that are not written; return all records."""
    todo = [(one, part) for one in plan.contributions for part in one.parts]
    records = stage.finished(len(todo))
    for index, (one, part) in enumerate(todo):
        if index not in records:
            records[index] = _write_part(stage, index, one, part, plan)
    return records


def _write_part(
    stage: ShardedStage, index: int, one: Contribution, part: Part, plan: MergePlan
) -> Record:
    source = replace(
        stage, table=one.source.store.pool(), quarantine=one.source.store.quarantine("ingest")
    )
    held, again = part.record["quarantine"], None
    if held is not None:
        before = decode_parquet(_checked(source.quarantine, held, one))
        again = _refused(before, one, plan)
    data = _checked(source.table, part.record["part"], one)
    if not part.changes and again is None:
        return _copy(stage, index, part.record, data, source)
    outcome = source.read(part.record)
    changed = Outcome(
        _rows(outcome.rows, one, part),
        outcome.quarantined,
        outcome.units,
        notes=outcome.notes,
        digests=outcome.digests,
    )
    drops = [not stays for stays in part.rows.stays(outcome.rows.num_rows)]
    stays, quarantined = ([], None) if again is None else again
    left = changed.without(
        drops, [not one for one in stays] or [False] * changed.quarantined.num_rows
    )
    if quarantined is not None:
        left = replace(left, quarantined=quarantined)
    return stage.write(index, left)


def _copy(
    stage: ShardedStage, index: int, record: Record, data: bytes, source: ShardedStage
) -> Record:
    """Write a part as it is in its store; its record last."""
    name, held = f"part-{index:05d}.parquet", record["quarantine"]
    if held is not None:
        stage.quarantine.write(name, source.quarantine.read(held["file"]))
        held = {**held, "file": name}
    stage.table.write(name, data)
    entry = {**record["part"], "file": name}
    own = {"shard": index, "part": entry, "quarantine": held}
    copied = {**record, **own, "fingerprint": stage.fingerprint.digest}
    write_record(stage.table, copied)
    return copied


def _checked(storage: Storage, entry: Record, one: Contribution) -> bytes:
    """Read a part of a store, and refuse a damaged one."""
    data = storage.read(entry["file"])
    if sha256(data) != entry["sha256"]:
        raise EchostillError(
            f"'{storage.locate(entry['file'])}' of '{one.name}' is damaged: its checksum is not "
            f"the one it was written with. `echostill verify {one.source.store.root}` says more."
        )
    return data


def _rows(rows: pa.Table, one: Contribution, part: Part) -> pa.Table:
    """Give the rows of a part their names in the merged pool."""
    ids = rows["image_id"].to_pylist()
    for row, new in part.rows.renamed.items():
        ids[row] = new
    values = {
        "image_id": ids,
        "group_id": [one.group(group) for group in rows["group_id"].to_pylist()],
        "organ": [one.organs.get(name, name) for name in rows["organ"].to_pylist()],
        "device": [one.devices.get(name, name) for name in rows["device"].to_pylist()],
    }
    for name, column in values.items():
        place = rows.schema.get_field_index(name)
        field = rows.schema.field(place)
        rows = rows.set_column(place, field, pa.array(column, field.type))
    return rows


def _refused(
    quarantined: pa.Table, one: Contribution, plan: MergePlan
) -> tuple[list[bool], pa.Table] | None:
    """Return which rows of a quarantine stay, and these as they become; None if all do as is."""
    stays, rows, changed = [], [], False
    for row in quarantined.to_pylist():
        known = {"image_id": row["id"], "id": row["id"], "group_id": ""}
        if row["error_class"] == NEEDS_REVIEW:
            verdict, context = split_context(row["message"])
            known["group_id"] = context.group
            named = replace(
                context,
                organ=one.organs.get(context.organ, context.organ),
                device=one.devices.get(context.device, context.device),
                group=one.group(context.group),
            )
            if named != context:
                row["message"], changed = verdict.describe() + named.describe(), True
        stays.append(not plan.tombstones.refusal(known, plan.key))
        if stays[-1]:
            rows.append(row)
    if all(stays) and not changed:
        return None
    return stays, pa.Table.from_pylist(rows, quarantined.schema)


def _write_decisions(store: Store, plan: MergePlan) -> None:
    """Copy the decisions of reviews, without those on withdrawn frames."""
    target = decisions_storage(store)
    for one in plan.contributions:
        source = decisions_storage(one.source.store)
        for name in source.list():
            data = source.read(name)
            table = decode_parquet(data)
            ids = table["image_id"].to_pylist()
            stays = [not plan.tombstones.refusal({"image_id": image}, plan.key) for image in ids]
            if not all(stays):
                data = encode_parquet(table.filter(pa.array(stays, pa.bool_())))
            if any(stays):
                target.write(name, data)


def _write_listings(store: Store, plan: MergePlan, history: Sequence[Growth]) -> None:
    """Keep the lists of files, so that the merged pool knows those that were read under its key."""
    listings = list(_listings(plan))
    keep(store.sources(), encode_parquet(listings[0]))
    known = KnownFiles(store, [], [history[0]])
    for growth, table in zip(history[1:], listings[1:], strict=True):
        shards = growth.parts - known.history[-1].parts
        add_version(store, known, encode_parquet(table), shards, growth.made_from)
        known = replace(known, history=[*known.history, growth])


def _listings(plan: MergePlan) -> Iterator[pa.Table]:
    """Yield the list of files of each version of the merged pool."""
    offset = 0
    for one in plan.contributions:
        folder = one.source.store.sources()
        names = [name for name in sorted(folder.list()) if name.startswith("files")]
        names.sort(key=lambda name: name != FILE)
        tables = [_listing(folder.read(name), offset, plan.tombstones) for name in names]
        if one is not plan.first:
            tables = [pa.concat_tables([LISTING_SCHEMA.empty_table(), *tables]).combine_chunks()]
        yield from tables or [LISTING_SCHEMA.empty_table()]
        offset += len(one.parts)


def _listing(data: bytes, offset: int, tombstones: Tombstones) -> pa.Table:
    """Return a list of files with its shards' numbers in the merged pool."""
    unknown = {"shard": UNKNOWN, "size": UNKNOWN, "modified": UNKNOWN}
    rows = []
    for row in decode_parquet(data).to_pylist():
        full = {**dict.fromkeys(LISTING_SCHEMA.names, ""), **unknown, **row}
        full["name"] = tombstones.name(full["name"])
        if full["shard"] != UNKNOWN:
            full["shard"] += offset
        elif offset:
            continue  # of an earlier release, which did not keep where it had cut
        rows.append(full)
    return pa.Table.from_pylist(rows, LISTING_SCHEMA)


def _passed_over(plan: MergePlan) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in plan.contributions:
        for kind, number in kept_summary(one.source.store.sources()).passed_over.items():
            counts[kind] = counts.get(kind, 0) + number
    return counts


def _copy_scores(store: Store, plan: MergePlan, records: Mapping[int, Record]) -> None:
    """Copy the first store's scores and its proxy, and let them name the merged pool's version."""
    source = plan.first.source
    for there, here in (
        (source.store.scores(), store.scores()),
        (source.store.quarantine("score"), store.quarantine("score")),
        (source.store.run("proxy"), store.run("proxy")),
    ):
        names = sorted(there.sizes(recursive=True).items(), key=lambda item: item[0] == MANIFEST)
        for name, size in names:
            if not name.endswith(".parquet") or here.size(name) != size:
                here.write(name, there.read(name))
    parts = [records[index]["part"] for index in range(len(plan.first.parts))]
    digests = {one.digest: digest_of_parts(parts[: one.parts]) for one in versions(source.pool)}
    for place in (store.scores(), store.quarantine("score"), store.storage.at(PROXY_RUN)):
        follow(place, digests, {}, "")


def _origins(
    plan: MergePlan, stage: ShardedStage, records: Mapping[int, Record]
) -> Iterator[pa.Table]:
    """Yield from which store each image is, and which images of others it stands for."""
    pool, index = Table(stage.table, {}), 0
    for one in plan.contributions:
        for part in one.parts:
            ids = pool.read_part(records[index]["part"]["file"], ["image_id"])[
                "image_id"
            ].to_pylist()
            left, kept = [], []
            if part.rows.copies:
                file = part.record["part"]["file"]
                own = one.source.pool.read_part(file, ["image_id"])["image_id"].to_pylist()
                left = [own[row] for row in part.rows.copies]
                kept = list(part.rows.copies.values())
            names = [one.name] * (len(ids) + len(left))
            yield pa.table([[*ids, *left], names, [*ids, *kept]], schema=ORIGINS_SCHEMA)
            index += 1
