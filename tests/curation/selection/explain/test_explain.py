import json

import numpy as np
import pyarrow as pa
import pytest

from echostill.curation.selection.core import SelectionSettings, select_coreset
from echostill.curation.selection.explain.explain import explain, explanation, find_image, ordinal
from echostill.platform.errors import UsageError

ROWS = 40


def identity(row):
    return f"{row * 0x9E3779B9 % 2**32:08x}{row:024x}"


def coreset_of(**keys):
    chosen = SelectionSettings(**{"budget": 12, "clusters": 3, **keys})
    generator = np.random.default_rng(5)
    features = generator.normal(size=(ROWS, 6)).astype(np.float16)
    ids = [identity(row) for row in range(ROWS)]
    scores = pa.table(
        {
            "image_id": ids,
            "feature": pa.FixedSizeListArray.from_arrays(
                pa.array(features.reshape(-1)), type=pa.list_(pa.float16(), 6)
            ),
            "gradient_mean": pa.array(generator.random(ROWS), pa.float32()),
            "gradient_std": pa.array(generator.random(ROWS), pa.float32()),
        }
    )
    groups = pa.table({"image_id": ids, "group_id": [f"clip{row // 8}" for row in range(ROWS)]})
    return select_coreset(scores, groups, chosen), chosen


POOL = pa.table(
    {
        "image_id": [identity(row) for row in range(4)] + ["abcd" + "0" * 28, "abcd" + "1" * 28],
        "source": [
            "liver/one.png",
            "liver/two.png",
            "cine.dcm#0",
            "cine.dcm#1",
            "lung/one.png",
            "twice.png",
        ],
    }
)


@pytest.mark.parametrize(
    "keys", [{}, {"method": "random"}, {"max_per_group": 1, "budget": 5}, {"budget": 2}]
)
def test_numbers_of_every_row(keys):
    table, chosen = coreset_of(**keys)
    rows = table.to_pylist()
    held = any("group limit:" in row["reason"] for row in rows)
    assert held == ("max_per_group" in keys)
    for row in rows:
        found = explanation(row["image_id"], table, None, chosen)
        json.dumps(found)
        assert {name: found[name] for name in row} == row
        members = [other for other in rows if other["cluster"] == row["cluster"]]
        members.sort(key=lambda other: other["cluster_rank"])
        picked = [other for other in members if other["selected"]]
        assert found["cluster_selected"] == len(picked)
        assert found["budget"] == chosen.budget
        assert found["pool_size"] == ROWS
        last = found["last_chosen"]
        assert (last is None) == (not picked)
        if last:
            assert last["image_id"] == picked[-1]["image_id"]
        after = [
            other
            for other in members
            if not other["selected"] and (not last or other["cluster_rank"] > last["cluster_rank"])
        ]
        next_one = found["next_not_chosen"]
        assert (next_one["image_id"] if next_one else None) == (
            after[0]["image_id"] if after else None
        )
        if row["selected"] or (last is None and "group limit" not in row["reason"]):
            assert found["taken_by"] == []
        elif "group limit" in row["reason"]:
            same = [r for r in rows if r["group_id"] == row["group_id"] and r["selected"]]
            assert found["taken_by"] == [other["image_id"] for other in same]
            assert len(same) == 1
        else:
            assert found["taken_by"] == [last["image_id"]]


def test_words_of_a_chosen_row():
    table, chosen = coreset_of(penalty=0.5, alpha=0.25)
    row = next(row for row in table.to_pylist() if row["selected"])
    origin = {"source": "liver/one.png", "organ": "liver", "device": "", "frame": 3, "image": b""}
    text = explain(row["image_id"], table, origin, chosen)
    size = row["cluster_size"]
    for part in (
        f"Image {row['image_id']} is in the coreset.",
        f"liver/one.png, organ liver, group {row['group_id']}, frame 3",
        f"number {row['cluster']}: {size} of 40 images",
        f"{ordinal(row['distance_rank'])} nearest of {size} to the centroid",
        f"{ordinal(row['gradient_rank'])} highest of {size}",
        "(mean - 0.5 x spread)",
        f"= (0.25 x {row['distance_rank']} + 0.75 x {row['gradient_rank']}) / {size}",
        f"{row['quota']} of the budget of 12",
        row["reason"],
    ):
        assert part in text
    assert "chosen instead" not in text


def test_words_of_a_row_that_was_left_out():
    table, chosen = coreset_of()
    rows = table.to_pylist()
    row = next(row for row in rows if not row["selected"] and row["quota"])
    found = explanation(row["image_id"], table, None, chosen)
    text = explain(row["image_id"], table, None, chosen)
    assert f"Image {row['image_id']} is not in the coreset." in text
    assert f"chosen instead {found['taken_by'][0]}, the last chosen of the cluster" in text
    assert f"dual rank {found['last_chosen']['dual_rank']:.4f}" in text
    assert "source" not in text


def test_words_of_a_row_that_the_group_limit_held_back():
    table, chosen = coreset_of(max_per_group=1, budget=5)
    row = next(row for row in table.to_pylist() if "group limit:" in row["reason"])
    text = explain(row["image_id"], table, None, chosen)
    assert ", of the same group\n" in text


def test_words_name_another_method():
    table, chosen = coreset_of(method="random")
    row = table.to_pylist()[0]
    assert "by method 'random'" in explain(row["image_id"], table, None, chosen)


def test_an_image_that_was_not_scored():
    table, chosen = coreset_of()
    with pytest.raises(UsageError, match="not scored"):
        explain("f" * 32, table, None, chosen)


def test_find_by_id_prefix_source_and_file_name():
    assert find_image(identity(1), POOL) == identity(1)
    assert find_image(identity(1)[:6].upper(), POOL) == identity(1)
    assert find_image("liver/two.png", POOL) == identity(1)
    assert find_image("liver/tw", POOL) == identity(1)
    assert find_image("two.png", POOL) == identity(1)
    assert find_image("cine.dcm#1", POOL) == identity(3)
    assert find_image("abcd0", POOL.select(["image_id"])) == "abcd" + "0" * 28
    chunked = pa.concat_tables([POOL.slice(0, 2), POOL.slice(2)])
    assert find_image("cine.dcm#1", chunked) == identity(3)


def test_find_ambiguous_lists_them():
    for name, hits in (("abcd", 2), ("cine.dcm", 2), ("one.png", 2), ("liver", 2)):
        with pytest.raises(UsageError, match=f"'{name}' matches {hits} images"):
            find_image(name, POOL)
    many = pa.table({"image_id": [f"beef{row:028x}" for row in range(9)]})
    with pytest.raises(UsageError, match="and 4 more") as caught:
        find_image("beef", many)
    assert str(caught.value).count("beef0") == 5
    twice = pa.concat_tables(
        [POOL, pa.table({"image_id": ["ffff" + "0" * 28], "source": ["twice.png"]})]
    )
    with pytest.raises(UsageError, match="matches 2 images"):
        find_image("twice.png", twice)


def test_find_unknown_suggests_the_nearest():
    with pytest.raises(UsageError, match=r"Did you mean 'liver/one\.png'"):
        find_image("liver/oen.png", POOL)
    with pytest.raises(UsageError, match="Did you mean 'abcd00'"):
        find_image("abxd00", POOL)
    with pytest.raises(UsageError, match="too short"):
        find_image("abc", POOL)
    with pytest.raises(UsageError, match="no image 'zzzzzzzz' among 6"):
        find_image("zzzzzzzz", POOL)
