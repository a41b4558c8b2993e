import pyarrow as pa

from echostill.curation.deidentification.decisions import OPEN, latest, record, state_of
from echostill.eval.reporting.copies import frames_that_wait
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import write_table


def test_frames_that_somebody_decided_on_do_not_wait(tmp_path):
    store = Store(str(tmp_path))
    schema = pa.schema([("image_id", pa.string()), ("cleaned", pa.string())])
    rows = [{"image_id": name, "cleaned": f"pixels of {name}"} for name in "abcde"]
    held = pa.Table.from_pylist(rows, schema=schema)
    write_table(store.table("review"), held, stage="ingest", fingerprint={})
    pixels = {row["image_id"]: row["cleaned"] for row in rows}
    made = (("approve", "ab"), ("reject", "bc"), ("undo", "a"), ("approve", "d"))
    for decision, names in made:
        chosen = {name: "other pixels" if name == "d" else pixels[name] for name in names}
        record(store, decision, chosen, reason="looked at", by="somebody")
    decided = latest(store)
    expected = [row["image_id"] for row in rows if state_of(row, decided)["state"] == OPEN]
    assert expected == ["a", "d", "e"]
    assert frames_that_wait(store) == 3
