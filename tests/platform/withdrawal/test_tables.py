"""Tables without what is withdrawn: as if its rows had never been there."""

import json

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.platform.shards.files import ShardFiles
from echostill.platform.shards.outcome import Outcome, decode_units
from echostill.platform.shards.records import read_records
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, encode_parquet, part_record, write_manifest
from echostill.platform.tables.verify import verify_store
from echostill.platform.withdrawal.rows import Cut
from echostill.platform.withdrawal.tables import count_rows, rewrite_tables
from echostill.platform.withdrawal.tombstones import ID, NOTE, Tombstones
from echostill.platform.withdrawal.traces import Traces

ELEMENT = pa.field("element", pa.float32())  # as Parquet calls it, so that it reads back as it was
SCHEMA = pa.schema([("image_id", pa.string()), ("feature", pa.list_(ELEMENT, 2))])
MADE = Fingerprint({}, "1", {}, {})
# A shard: its units, each with some rows and some in quarantine; and which of all these go.
SHARDS = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=4),
    min_size=1,
    max_size=3,
)


def outcomes(shards):
    """Rows named by shard, unit and place."""
    for shard, units in enumerate(shards):
        rows, held = (
            [
                f"{kind} {shard} {unit} {number}"
                for unit, counts in enumerate(units)
                for number in range(counts[at])
            ]
            for at, kind in enumerate(("row", "held"))
        )
        yield rows, held


def outcome(rows, held, units):
    table = [{"image_id": row, "feature": [float(len(row)), 1.0]} for row in rows]
    lost = [
        {"stage": "ingest", "id": one, "source": one, "error_class": "NeedsReview", "message": "m"}
        for one in held
    ]
    return Outcome(
        pa.Table.from_pylist(table, SCHEMA), pa.Table.from_pylist(lost, QUARANTINE_SCHEMA), units
    )


def written(root, shards, found):
    store = Store(str(root))
    files = ShardFiles(
        "ingest",
        store.pool(),
        store.quarantine("ingest"),
        SCHEMA,
        MADE,
        held_back_class="NeedsReview",
    )
    records = [files.write(n, one) for n, one in enumerate(found)]
    held = [record["quarantine"] for record in records if record["quarantine"]]
    write_manifest(
        store.quarantine("ingest"), stage="ingest", schema=QUARANTINE_SCHEMA, parts=held,
        fingerprint=MADE.as_dict(),
    )  # fmt: skip
    kept, lost = (sum(len(one) for one in sizes) for sizes in zip(*shards, strict=True))
    extra = {"rows_in": kept + lost, "quarantined": lost}
    waiting = sum(record.get("held_back", 0) for record in records)
    write_manifest(
        store.pool(), stage="ingest", schema=SCHEMA, parts=[record["part"] for record in records],
        fingerprint=MADE.as_dict(), extra={**extra, "held_back": waiting} if waiting else extra,
    )  # fmt: skip
    return store


@settings(max_examples=12, deadline=None)
@given(SHARDS, st.data())
def test_a_rewritten_stage_is_as_if_the_rows_had_never_been(tmp_path_factory, shards, data):
    named = list(outcomes(shards))
    everything = [one for rows, held in named for one in (*rows, *held)]
    gone = data.draw(st.sets(st.sampled_from(everything))) if everything else set()
    full = [outcome(*one, units) for one, units in zip(named, shards, strict=True)]
    store = written(tmp_path_factory.mktemp("store"), named, full)
    traces = Traces(frozenset(gone), frozenset(), frozenset(), frozenset())
    tombstones = Tombstones().added(gone, [], [], [], None)
    left = [tuple([one for one in part if one not in gone] for part in shard) for shard in named]
    assert count_rows(store.pool(), Cut(traces))[0] == sum(
        len(rows[0]) - len(kept[0]) for rows, kept in zip(named, left, strict=True)
    )
    before = {name: store.pool().read(name) for name in store.pool().list() if "part" in name}
    rewrite_tables(store, traces, tombstones)
    once = {name: store.storage.read(name) for name in store.storage.list(recursive=True)}
    rewrite_tables(store, traces, tombstones)
    assert {n: store.storage.read(n) for n in store.storage.list(recursive=True)} == once
    units = [
        [tuple(sum(unit_of(one) == u for one in part) for part in parts) for u in range(len(shard))]
        for shard, parts in zip(shards, left, strict=True)
    ]
    for record, (rows, held), counts in zip(read_sorted(store), left, units, strict=True):
        name = record["part"]["file"]
        wanted = encode_parquet(outcome(rows, held, None).rows)
        assert store.pool().read(name) == wanted
        assert record["part"] == part_record(name, len(rows), wanted)
        assert (record["quarantine"] or {"rows": 0})["rows"] == len(held)
        assert decode_units(record["units"]) == counts
        assert record.get("held_back", 0) == len(held)
        own = {*named[record["shard"]][0], *named[record["shard"]][1]} & gone
        assert record.get("notes", {}).get(NOTE, []) == sorted(
            tombstones.mark(ID, one) for one in own
        )
        if not own:
            assert store.pool().read(name) == before[name]
    manifest = json.loads(store.pool().read(MANIFEST))
    assert manifest["rows_in"] == sum(len(rows) + len(held) for rows, held in left)
    if everything:
        assert verify_store(store.root).sound


def unit_of(name):
    return int(name.split()[2])


def read_sorted(store):
    return sorted(read_records(store.pool()), key=lambda record: record["shard"])
