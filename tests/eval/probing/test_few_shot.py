import numpy as np

from echostill.eval.probing.few_shot import draw_groups, predict_draw


def sample(groups=24):
    labels = np.repeat(np.arange(groups) % 2, 2)
    names = np.array([f"g{k:02d}" for k in np.repeat(np.arange(groups), 2)])
    features = np.random.default_rng(0).normal(size=(len(labels), 4)) + 3 * labels[:, None]
    return names, labels, features


def test_draws_keep_groups_apart_and_depend_on_names_alone():
    groups, labels, _ = sample()
    draws, too_many = draw_groups(groups, labels, (2, 7, 8), 3, seed=1)
    assert [(draw.shots, draw.number) for draw in draws] == [
        (2, 0), (2, 1), (2, 2), (7, 0), (7, 1), (7, 2),
    ]  # fmt: skip
    assert too_many == [8]  # of 12 groups of a class, five must be left to test on
    for draw in draws:
        train, test = set(groups[draw.train]), set(groups[draw.test])
        assert not train & test
        assert len(train | test) == 24
        for value in (0, 1):
            assert len(set(groups[draw.train][labels[draw.train] == value])) == draw.shots
    assert not np.array_equal(draws[0].train, draws[1].train)
    order = np.random.default_rng(3).permutation(len(groups))
    again, _ = draw_groups(groups[order], labels[order], (2,), 1, seed=1)
    assert sorted(order[again[0].train]) == draws[0].train.tolist()


def test_few_labels_suffice_where_classes_are_far_apart():
    groups, labels, features = sample()
    for draw in draw_groups(groups, labels, (2, 5), 2, seed=0)[0]:
        predicted = predict_draw(features, groups, labels, 2, draw)
        assert (predicted == labels[draw.test]).mean() > 0.9
