"""What a running service knows of a store, while images are withdrawn from it."""

import pytest

from echostill.curation.service.data.derived import derived_folder, prepare
from echostill.curation.service.data.state import State
from echostill.curation.service.problems import Problem
from echostill.curation.withdrawal.request import WithdrawalRequest
from echostill.curation.withdrawal.withdrawing import withdraw
from echostill.platform.imaging.images import decode_staged
from echostill.platform.tables.table import Table
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


def rows_of(state):
    return Table.open(state.store.pool(), "ingest").read(["image_id", "group_id"]).to_pylist()
