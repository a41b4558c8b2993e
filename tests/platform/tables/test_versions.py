"""Versions of a table that grows: the parts of each stay, and each is found by its digest."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostill.platform.errors import UsageError
from echostill.platform.tables.fingerprint import FINGERPRINT
from echostill.platform.tables.store import Store, check_origin
from echostill.platform.tables.table import Table, encode_parquet, part_record, write_manifest
from echostill.platform.tables.versions import (
    VERSIONS,
    Growth,
    at_version,
    latest,
    made_from_pool,
    version_entries,
    version_with,
    versions,
)


def written(storage, sizes, history=(), inputs=None):
    """Write a table with parts of these sizes."""
    parts, first = [], 0
    schema = pa.schema([("image_id", pa.string())])
    for number, rows in enumerate(sizes):
        ids = [f"{row:04d}" for row in range(first, first + rows)]
        data = encode_parquet(pa.table({"image_id": ids}, schema=schema))
        storage.write(f"part-{number:05d}.parquet", data)
        parts.append(part_record(f"part-{number:05d}.parquet", rows, data))
        first += rows
    grown = version_entries(parts, history)
    manifest = write_manifest(
        storage,
        stage="ingest",
        schema=schema,
        parts=parts,
        fingerprint={"inputs": inputs or {}, "digest": "0"},
        extra={VERSIONS: grown} if grown else {},
    )
    return Table(storage, manifest)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=4))
def test_each_version_is_the_table_as_it_was(tmp_path_factory, growths):
    folder = tmp_path_factory.mktemp("versions")
    history, sizes, before = [], [], []
    for number, added in enumerate(growths):
        sizes += added
        history.append(Growth(len(sizes), {"pool": f"digest {number}"}))
        table = written(Store(str(folder / str(number))).pool(), sizes, history)
        before.append((table.digest, table.read()["image_id"].to_pylist()))
    found = versions(table)
    assert [one.digest for one in found] == [digest for digest, _ in before]
    for version, (digest, ids) in zip(found, before, strict=True):
        assert version_with(table, digest).rows == len(ids)
        assert at_version(table, version).digest == digest
        assert at_version(table, version).read()["image_id"].to_pylist() == ids
    assert version_with(table, "another") is None
    assert latest(table).digest == table.digest


def test_a_table_that_never_grew_says_nothing_of_versions(tmp_path):
    table = written(Store(str(tmp_path)).pool(), [2, 1], inputs={"pool": "abc"})
    assert VERSIONS not in table.manifest
    assert [(one.number, one.rows, one.digest) for one in versions(table)] == [(1, 3, table.digest)]
    assert made_from_pool(table) == "abc"


def test_what_was_selected_before_the_pool_grew_stays_usable(tmp_path):
    store = Store(str(tmp_path))
    first = written(store.pool(), [2])
    coreset = written(store.coreset("old"), [2], inputs={"pool": first.digest})
    coreset.storage.write(FINGERPRINT, b"{}")
    check_origin(store, coreset)
    written(store.pool(), [2, 1], [Growth(1), Growth(2)])
    check_origin(store, coreset)
    written(store.pool(), [3])
    with pytest.raises(UsageError, match="selected from another pool"):
        check_origin(store, coreset)
