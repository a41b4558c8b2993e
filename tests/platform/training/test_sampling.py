import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.platform.seeding import stream, unit_uniforms
from echostill.platform.training.sampling import balanced_epoch, draw, draw_weighted, worker_share


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 9),
    count=st.integers(1, 30),
    batch=st.integers(1, 17),
    workers=st.integers(1, 4),
)
def test_each_image_once_per_epoch_whatever_the_batch_and_workers(seed, count, batch, workers):
    steps = 3 * count // batch + 1
    seen = []
    for step in range(steps):
        whole = draw(seed, count, step * batch, batch)
        shares = [worker_share(whole, rank, workers) for rank in range(workers)]
        assert sorted(np.concatenate([s.rows for s in shares])) == sorted(whole.rows)
        seen += list(zip(whole.epochs, whole.rows, strict=True))
    for epoch in range(3):
        rows = [row for e, row in seen if e == epoch]
        if len(rows) == count:
            assert sorted(rows) == list(range(count))
        assert len(set(rows)) == len(rows)


def test_the_stream_does_not_depend_on_where_it_is_cut():
    whole = np.concatenate([draw(5, 13, start, 4).rows for start in range(0, 40, 4)])
    cut = np.concatenate([draw(5, 13, 0, 7).rows, draw(5, 13, 7, 33).rows])
    assert (whole == cut).all()


def test_orders_differ_between_epochs_and_seeds():
    first, second = draw(1, 50, 0, 50).rows, draw(1, 50, 50, 50).rows
    assert (first != second).any()
    assert (draw(2, 50, 0, 50).rows != first).any()


def test_uniforms_belong_to_the_image_not_to_the_batch():
    together = unit_uniforms(3, 1, ["a", "b", "c"], "crop", 4)
    assert (unit_uniforms(3, 1, ["c", "a"], "crop", 4) == together[[2, 0]]).all()
    assert (together >= 0).all()
    assert (together < 1).all()
    assert len(np.unique(together)) == together.size
    others = [
        unit_uniforms(4, 1, ["a"], "crop", 4),
        unit_uniforms(3, 2, ["a"], "crop", 4),
        unit_uniforms(3, 1, ["a"], "mask", 4),
    ]
    assert all((other != together[0]).all() for other in others)


def test_keys_of_different_types_name_different_streams():
    assert stream(0, "1").random() != stream(0, 1).random()
    assert stream(0, "a", "b").random() != stream(0, "ab").random()


@settings(deadline=None, max_examples=40)
@given(
    codes=st.lists(st.integers(0, 3), min_size=1, max_size=25),
    seed=st.integers(0, 5),
)
def test_balanced_epochs_give_every_stratum_its_places_and_every_image_its_turn(codes, seed):
    strata = np.array(codes, dtype=np.int64)
    names = np.unique(strata)
    epochs = [balanced_epoch(seed, epoch, strata.tobytes()) for epoch in range(4)]
    for rows in epochs:
        assert len(rows) == len(codes)
        counts = [int((strata[rows] == name).sum()) for name in names]
        assert max(counts) - min(counts) <= 1
    seen = np.bincount(np.concatenate(epochs), minlength=len(codes))
    for name in names:
        own = seen[strata == name]
        assert own.max() - own.min() <= 1


def test_weighted_epochs_hold_each_image_as_often_as_its_weight_asks():
    weights = np.array([0.0, 1.0, 1.0, 2.0, 0.0, 0.5, 4.0])
    expected = len(weights) * weights / weights.sum()
    counts = np.zeros((400, len(weights)))
    for epoch in range(400):
        drawn = draw_weighted(3, weights, epoch * len(weights), len(weights))
        assert set(drawn.epochs) == {epoch}
        counts[epoch] = np.bincount(drawn.rows, minlength=len(weights))
    assert (counts >= np.floor(expected)).all()
    assert (counts <= np.ceil(expected)).all()
    np.testing.assert_allclose(counts.mean(axis=0), expected, atol=0.08)


def test_a_weighted_stream_does_not_depend_on_how_it_is_cut():
    weights = np.random.default_rng(0).random(11)
    whole = draw_weighted(1, weights, 0, 60)
    parts = [draw_weighted(1, weights, start, 12) for start in range(0, 60, 12)]
    np.testing.assert_array_equal(whole.rows, np.concatenate([part.rows for part in parts]))
    np.testing.assert_array_equal(whole.epochs, np.concatenate([part.epochs for part in parts]))
    assert (draw_weighted(2, weights, 0, 60).rows != whole.rows).any()
