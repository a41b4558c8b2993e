import tempfile

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.platform.tables import table
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import write_table
from echostill.platform.tables.verify import verify_store

IDS = st.lists(st.sampled_from("abcde"), max_size=6)
CHOSEN = st.lists(st.booleans(), min_size=6, max_size=6)


def write(storage, stage, columns, **extra):
    table = pa.table({name: pa.array(values, kind) for name, (values, kind) in columns.items()})
    fingerprint = {"digest": ""}
    write_table(
        storage, table, stage=stage, fingerprint=fingerprint, rows_per_part=2, extra=extra
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(pool=IDS, scores=IDS, held=IDS, coreset=IDS, chosen=CHOSEN, same=st.booleans())
def test_tables_that_do_not_fit_are_found_as_by_comparing_sorted_lists(
    pool, scores, held, coreset, chosen, same
):
    """Rows, each as often as it is there, in any order and spread over any parts."""
    if same:  # what a random draw rarely is: a store that is sound, or lacks one thing only
        scores, coreset = pool[len(held) :][::-1], pool[len(held) :]
        held = pool[: len(held)]
    held = held[: 2 * -(-len(scores) // 2)]  # quarantine goes with the parts that there are
    budget = 2
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        text = pa.string()
        write(store.pool(), "ingest", {"image_id": (pool, text)}, rows_in=len(pool))
        write(
            store.scores(), "score", {"image_id": (scores, text)}, rows_in=len(scores) + len(held)
        )  # fmt: skip
        write(store.quarantine("score"), "score", {"id": (held, text)})
        columns = {
            "image_id": (coreset, text),
            "selected": (chosen[: len(coreset)], pa.bool_()),
        }
        write(store.coreset("default"), "select", columns, budget=budget)
        found = verify_store(folder).problems
    selected = chosen[: len(coreset)].count(True)
    expected = [
        f"{name}: image ids are not unique"
        for name, ids in (("pool", pool), ("scores", scores))
        if len(set(ids)) < len(ids)
    ]
    if sorted(pool) != sorted(scores + held):
        expected.append("scores: its rows are not the pool's")
    if sorted(coreset) != sorted(scores):
        expected.append("coresets/default: its rows are not the scores'")
    if selected != budget:
        expected.append(f"coresets/default: {selected} selected, the budget is {budget}")
    assert found == expected


def test_a_damaged_row_group_of_a_part_is_found(tmp_path, monkeypatch):
    """Bytes that fit their checksum and are no Parquet in one place, neither first nor last."""
    monkeypatch.setattr(table, "ROW_GROUP_ROWS", 256)
    store = Store(str(tmp_path))
    ids = [f"{row * 0x9E3779B97F4A7C15 % 2**64:032x}" for row in range(1024)]
    write_table(
        store.pool(),
        pa.table({"image_id": ids}),
        stage="ingest",
        fingerprint={"digest": ""},
        extra={"rows_in": len(ids)},
    )
    assert verify_store(store.root).sound
    (name,) = store.open_pool().part_names
    data = bytearray(store.pool().read(name))
    middle = len(data) // 2
    data[middle - 200 : middle + 200] = bytes(400)
    manifest = store.open_pool().manifest
    manifest["parts"] = [table.part_record(name, len(ids), bytes(data))]
    store.pool().write(name, bytes(data))
    store.pool().write("manifest.json", table.json.dumps(manifest).encode())
    (problem,) = verify_store(store.root).problems
    assert problem.startswith(f"pool/{name}: not readable as Parquet (")
