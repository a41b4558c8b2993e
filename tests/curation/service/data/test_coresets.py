import json

import numpy as np
import pytest

from echostill.curation.selection.explain.explain import explain, explanation
from echostill.curation.selection.stage import SelectConfig
from echostill.platform.config import validate
from echostill.platform.tables.store import Store


@pytest.fixture(scope="module", params=["default", "spread"])
def coreset(request, state):
    return state.coreset(request.param)


@pytest.fixture(scope="module")
def whole(coreset, built):
    return Store(str(built)).open_coreset(coreset.entry.name).read()


def test_positions_are_the_tables_rows(coreset, whole, state):
    expected = whole.sort_by("image_id").to_pylist()
    assert len(coreset) == len(expected) == 236
    for position in (0, 7, 235):
        row = int(coreset.rows[position])
        assert state.catalogue.ids[row] == expected[position]["image_id"]
        assert coreset.position(row) == position
    unscored = np.flatnonzero(~state.catalogue.scored)
    assert coreset.position(int(unscored[0])) is None


def test_why_is_what_the_command_line_says(coreset, whole, built, state):
    text = Store(str(built)).coreset(coreset.entry.name).read("configuration.json")
    settings = validate(SelectConfig, json.loads(text))
    for position in range(0, len(coreset), 5):
        row = int(coreset.rows[position])
        image_id, origin = state.catalogue.ids[row], state.catalogue.image(row)
        words, values = coreset.why(position)
        assert words == explain(image_id, whole, origin, settings)
        expected = explanation(image_id, whole, origin, settings)
        assert set(values.pop("taken_by")) == set(expected.pop("taken_by"))
        assert values == expected


def test_members_are_in_the_order_in_which_they_are_taken(coreset, whole):
    rows = whole.sort_by("image_id").to_pylist()
    seen = 0
    for cluster in range(len(coreset.cluster_starts) - 1):
        members = coreset.members(cluster)
        found = [rows[place]["cluster_rank"] for place in members]
        assert found == list(range(1, len(members) + 1))
        assert {rows[place]["cluster"] for place in members} == {cluster}
        seen += len(members)
    assert seen == len(rows)
    assert coreset.members(-1) is None
    assert coreset.members(10**6) is None


def test_clusters_are_counted(coreset, whole):
    rows = whole.to_pylist()
    for cluster in range(len(coreset.cluster_starts) - 1):
        own = [row for row in rows if row["cluster"] == cluster]
        item = coreset.cluster_item(cluster)
        assert item["size"] == len(own)
        assert item["quota"] == own[0]["quota"]
        assert item["selected"] == sum(row["selected"] for row in own)
        assert item["mean_distance"] == pytest.approx(np.mean([row["distance"] for row in own]))
        nearest = min(own, key=lambda row: row["distance_rank"])
        assert item["typical"] == nearest["image_id"]


def test_stats_are_those_of_the_table(coreset, whole, make):
    stats = coreset.stats
    rows = whole.to_pylist()
    organs = {row["image_id"]: row["organ"] for row in make["pool_rows"]()}
    assert stats["images"] == 236
    assert stats["selected"] == 60 == sum(row["selected"] for row in rows)
    for item in stats["by"]["organ"]:
        own = [row for row in rows if organs[row["image_id"]] == item["value"]]
        assert item["images"] == len(own)
        assert item["selected"] == sum(row["selected"] for row in own)
        assert item["share"] == pytest.approx(item["selected"] / item["images"], abs=1e-6)
    assert stats["groups"]["pool"] == len({row["group_id"] for row in rows})
    chosen = {row["group_id"] for row in rows if row["selected"]}
    assert stats["groups"]["selected"] == len(chosen)
    for name, histogram in stats["histograms"].items():
        expected, edges = np.histogram([row[name] for row in rows], bins=20)
        assert histogram["pool"] == expected.tolist()
        assert histogram["edges"] == pytest.approx(edges.tolist())
        assert sum(histogram["selected"]) == 60
