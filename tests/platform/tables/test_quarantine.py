import pyarrow as pa
import pytest

from echostill.platform.errors import UsageError
from echostill.platform.tables.quarantine import quarantine_parts, quarantine_rows
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import encode_parquet


def row(stage, name):
    said = {"error_class": "DecodeError", "message": f"the file {name} is damaged"}
    return {"stage": stage, "id": name, "source": name, **said}


def test_rows_are_found_also_where_a_stage_ended_early(tmp_path):
    store = Store(str(tmp_path))
    for stage, names in (("ingest", "ab"), ("score", "c")):
        for index, name in enumerate(names):
            part = pa.Table.from_pylist([row(stage, name)], schema=QUARANTINE_SCHEMA)
            store.quarantine(stage).write(f"part-{index:05d}.parquet", encode_parquet(part))
    assert [found["source"] for found in quarantine_rows(store)] == ["a", "b", "c"]
    assert [stage for stage, _ in quarantine_parts(store)] == ["ingest", "ingest", "score"]


def test_a_store_that_is_none_is_said(tmp_path):
    with pytest.raises(UsageError, match="echostill ingest"):
        quarantine_rows(Store(str(tmp_path / "none")))
