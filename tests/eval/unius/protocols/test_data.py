"""Tasks of prepared sets, and their images with sides and folds."""

from itertools import pairwise

import numpy as np
import pytest

from echostill.eval.unius.protocols.data import find_tasks, limited, load_data, nested_share
from echostill.platform.errors import UsageError


@pytest.fixture
def busi(prepared_set):
    _, done = prepared_set("busi")
    (task,) = find_tasks(done.table.storage.root, kinds=("classification",))
    return load_data(task, 16)


def test_sides_cover_the_images_and_cut_no_group(busi):
    rows = np.concatenate(list(busi.sides.values()))
    assert sorted(rows) == list(range(len(busi.dataset)))
    (split,) = busi.rounds("sides")
    groups = busi.dataset.groups
    assert not set(groups[split.train]) & set(groups[split.test])
    assert set(split.train) == set(busi.sides["train"]) | set(busi.sides["val"])


def test_folds_test_every_image_once(prepared_set):
    _, done = prepared_set("gist514")
    (task,) = find_tasks(done.table.storage.root, kinds=("segmentation",))
    data = load_data(task, 16)
    rounds = data.rounds("folds")
    assert len(rounds) > 1
    tested = np.concatenate([split.test for split in rounds])
    assert sorted(tested) == list(range(len(data.dataset)))
    for split in rounds:
        assert not set(data.dataset.groups[split.train]) & set(data.dataset.groups[split.test])


def test_folds_of_the_training_side_alone_are_refused(prepared_set):
    _, done = prepared_set("tn3k")
    (task,) = find_tasks(done.table.storage.root, kinds=("classification",))
    with pytest.raises(UsageError, match=r"'tn3k' has no folds.*split=sides"):
        load_data(task, 16).rounds("folds")


def test_shares_are_nested_and_of_whole_groups(busi):
    rows = busi.training
    parts = [set(nested_share(busi, rows, share, 3)) for share in (0.1, 0.3, 0.6, 1.0)]
    assert all(small <= large for small, large in pairwise(parts))
    assert parts[-1] == set(rows)
    assert {busi.dataset.labels[row] for row in parts[0]} == set(busi.dataset.labels[rows])
    for part in parts:
        chosen = {busi.dataset.groups[row] for row in part}
        assert part == {row for row in rows if busi.dataset.groups[row] in chosen}


def test_a_limit_keeps_whole_groups(busi):
    kept = limited(busi, busi.training, 3, 0)
    assert 1 <= len(kept) <= 3
    groups = set(busi.dataset.groups[kept])
    rest = np.setdiff1d(busi.training, kept)
    assert not groups & set(busi.dataset.groups[rest])
    assert len(limited(busi, busi.training, 10**6, 0)) == len(busi.training)


def test_masks_are_read_at_their_own_size(prepared_set):
    _, done = prepared_set("camus")
    (task,) = find_tasks(done.table.storage.root, kinds=("segmentation",))
    data = load_data(task, 16)
    mask = data.native_mask(0)
    row = next(r for r in done.table.read().to_pylist() if r["id"] == data.ids[0])
    assert mask.shape == (row["height"], row["width"])
    assert set(np.unique(mask)) - {0} == {
        list(task.structures.values()).index(int(value)) + 1 for value in row["structures"].split()
    }


def test_lesions_can_be_detected_where_a_set_has_masks(prepared_set):
    kinds = ("classification", "segmentation", "detection")
    found = {
        name: [
            task.kind for task in find_tasks(prepared_set(name)[1].table.storage.root, (), kinds)
        ]
        for name in ("busi", "gist514", "camus")
    }
    assert found == {
        "busi": ["classification", "detection"],
        "gist514": ["segmentation", "detection"],
        "camus": ["segmentation"],
    }


def test_an_unknown_set_and_a_kind_that_is_not_there_are_named(prepared_set):
    _, done = prepared_set("busi")
    folder = done.table.storage.root
    with pytest.raises(UsageError, match=r"no prepared set 'bus'.*Did you mean 'busi'"):
        find_tasks(folder, ("bus",), ("classification",))
    with pytest.raises(UsageError, match="has a task of the kind segmentation"):
        find_tasks(folder, (), ("segmentation",))
    with pytest.raises(UsageError, match=r"holds no prepared set.*bench prepare"):
        find_tasks(f"{folder}/images", (), ("segmentation",))
