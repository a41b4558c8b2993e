"""What a running service knows of a store that changes: images are withdrawn, the pool grows."""

import json

import pyarrow as pa
import pytest

from echostill.curation import open_store
from echostill.curation.service.data.derived import derived_folder, prepare
from echostill.curation.service.data.state import State
from echostill.curation.service.problems import Problem
from echostill.curation.withdrawal.request import WithdrawalRequest
from echostill.curation.withdrawal.withdrawing import withdraw
from echostill.platform.imaging.images import decode_staged
from echostill.platform.tables.schemas import POOL_SCHEMA
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import (
    MANIFEST,
    Table,
    encode_parquet,
    part_record,
    write_manifest,
)
from echostill.platform.tables.versions import VERSIONS, Growth, version_entries
from echostill.platform.withdrawal.state import PENDING


class PreparedState(State):
    """Prepares in this process, and only when a test says so."""

    def _prepare(self):
        pass

    def prepare(self):
        prepare(self.store, self.folder, lambda stage, fraction: None)
        self.refresh()


def test_a_running_service_forgets_what_is_withdrawn(own_store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    state = PreparedState(str(own_store))
    state.prepare()
    group = "clip1"
    gone = [row["image_id"] for row in rows_of(state) if row["group_id"] == group]
    assert [state.coreset(name).entry.name for name in (None, "spread")] == ["default", "spread"]
    before, files = len(state.catalogue), derived_folder(state.store)
    withdraw(str(own_store), WithdrawalRequest("group", group), reason="consent withdrawn")
    with pytest.raises(Problem, match="is being built") as raised:  # nobody has told the service
        state.row(gone[0])
    assert raised.value.status == 503
    assert not files.exists()
    state.prepare()
    assert len(state.catalogue) == before - len(gone)
    with pytest.raises(Problem, match="no image"):
        state.row(gone[0])
    for name in (None, "spread"):
        ids = state.coreset(name).catalogue.ids
        assert all(ids.find(one) is None for one in gone)
    shown = Table.open(state.store.pool(), "ingest").read(["image_id", "image"]).to_pylist()[7]
    row = state.row(shown["image_id"])
    pixels = decode_staged(shown["image"])
    part, place = state.catalogue.location(row)
    assert (decode_staged(state.thumbnails.picture(part, place, 10_000, "png")) == pixels).all()


def test_meanwhile_it_answers_nothing(own_store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    state = PreparedState(str(own_store))
    state.prepare()
    state.store.storage.write(PENDING, b"{}")
    with pytest.raises(Problem, match="are being withdrawn"):
        _ = state.catalogue
    assert state.entries == {}
    state.store.storage.delete(PENDING)
    state.refresh()
    assert len(state.catalogue) == 240
    assert sorted(state.entries) == ["default", "spread"]


def test_a_pool_that_grows_is_noticed(own_store, make, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    state = PreparedState(str(own_store))
    state.prepare()
    before, added = len(state.catalogue), make["pool_rows"](252)[240:]
    chosen = {name: chosen_of(state, name) for name in ("default", "spread")}
    grow(state.store.pool(), pa.Table.from_pylist(added, POOL_SCHEMA))
    state.refresh()
    with pytest.raises(Problem, match="is being built"):
        state.row(added[0]["image_id"])
    state.prepare()
    assert len(state.catalogue) == before + len(added)
    for shown in added:
        part, place = state.catalogue.location(state.row(shown["image_id"]))
        picture = state.thumbnails.picture(part, place, 10_000, "png")
        assert (decode_staged(picture) == decode_staged(shown["image"])).all()
    assert chosen == {name: chosen_of(state, name) for name in chosen}
    assert state.neighbours is not None  # of the images that are scored


def test_a_reader_goes_on_after_a_growth_and_a_withdrawal(own_store, make, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with open_store(str(own_store), report=lambda stage, fraction: None) as reader:
        added = make["pool_rows"](252)[240:]
        grow(Store(str(own_store)).pool(), pa.Table.from_pylist(added, POOL_SCHEMA))
        assert len(reader.coresets()) == 2
        assert reader.pool()["images"] == 252
        request = WithdrawalRequest("group", added[0]["group_id"])
        withdraw(str(own_store), request, reason="consent withdrawn")
        assert reader.pool()["images"] == 246


def grow(storage, rows):
    """Append a part to a table, as a stage leaves it that has grown."""
    manifest = json.loads(storage.read(MANIFEST))
    name, data = f"part-{len(manifest['parts']):05d}.parquet", encode_parquet(rows)
    storage.write(name, data)
    parts = [*manifest["parts"], part_record(name, rows.num_rows, data)]
    history = [Growth(len(parts) - 1), Growth(len(parts))]
    write_manifest(
        storage, stage="ingest", schema=rows.schema, parts=parts, fingerprint={},
        extra={VERSIONS: version_entries(parts, history)},
    )  # fmt: skip


def chosen_of(state, name):
    coreset = state.coreset(name)
    return [coreset.catalogue.ids[row] for row in coreset.rows[coreset.selected_positions]]


def rows_of(state):
    return Table.open(state.store.pool(), "ingest").read(["image_id", "group_id"]).to_pylist()
