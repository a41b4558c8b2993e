"""An estimate is what the selection then does, where it can be known before."""

from collections import Counter

import pytest

from echostill.curation.selection.decided.pin_table import add_pin
from echostill.curation.selection.stage import SelectConfig
from echostill.curation.service.answers.estimates import estimate
from echostill.curation.service.data.state import State
from echostill.platform.errors import UsageError
from echostill.platform.tables.store import Store

DONE = [(None, None), ("2026-01-01T00:00:05Z", "2026-01-01T00:00:17Z")]


@pytest.mark.parametrize("rule", ["water-filling", "square-root", "proportional"])
def test_a_balanced_selection_has_the_estimated_organs(own_store, make, rule):
    store = Store(str(own_store))
    banned = [make["identity"](row) for row in range(0, 200, 4)]  # most of the livers
    add_pin(store, "ban", banned, author="a", reason="b")
    add_pin(store, "pin", [make["identity"](row) for row in (2, 6)], author="a", reason="b")
    keys = {"budget": 75, "clusters": 8, "balance": "organ", "balance_quota": rule}
    state = State(str(own_store))
    state.refresh()
    found = estimate(state, SelectConfig(store=str(own_store), **keys), DONE)
    assert (found["budget"], found["images"], found["balanced"]) == (75, 236, True)
    assert found["seconds"] == 12
    make["pick"](own_store, name="balanced", **keys)
    rows = store.open_coreset("balanced").read()
    chosen = {
        image
        for image, kept in zip(*rows.select([0, "selected"]).to_pydict().values(), strict=True)
        if kept
    }
    pool = store.open_pool().read(["image_id", "organ"]).to_pylist()
    organs = Counter(row["organ"] for row in pool if row["image_id"] in chosen)
    assert {one["value"]: one["selected"] for one in found["organs"]} == organs


def test_without_balance_it_is_made_up_as_the_pool(state):
    found = estimate(state, SelectConfig(store="x", budget=0.5), [])
    assert (found["budget"], found["balanced"], found["seconds"]) == (118, False, None)
    assert sum(one["images"] for one in found["organs"]) == 236
    for one in found["organs"]:
        assert one["selected"] == pytest.approx(one["images"] / 2, abs=1)
    with pytest.raises(UsageError, match="budget 900"):
        estimate(state, SelectConfig(store="x", budget=900), [])
