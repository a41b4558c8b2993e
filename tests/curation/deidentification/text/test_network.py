import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import signal

from echostill.curation.deidentification.text import network
from echostill.curation.deidentification.text.network import LastPicture, text_logits


def reference(value):
    """The network in whole numbers of 64 bits, one channel after the other."""
    cells = [value.astype(np.int64)]
    layers = network._layers()
    for number, layer in enumerate(layers):
        weight = np.rint(layer.weight).astype(np.int64)
        size, step, reach = weight.shape[2], layer.stride, layer.dilation
        spread = np.zeros((*weight.shape[:2], *[reach * (size - 1) + 1] * 2), dtype=np.int64)
        spread[:, :, ::reach, ::reach] = weight
        sums = [
            sum(
                signal.correlate2d(channel, kernel, mode="same")[::step, ::step]
                for channel, kernel in zip(cells, kernels, strict=True)
            )
            for kernels in spread
        ]
        assert all(np.abs(part).max() < 2**24 for part in sums)
        scaled = [
            part.astype(np.float32) * layer.scale[i] + layer.offset[i]
            for i, part in enumerate(sums)
        ]
        if number == len(layers) - 1:
            return scaled[0]
        cells = [np.clip(np.rint(part), 0, 255).astype(np.int64) for part in scaled]
    raise AssertionError


@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))))
@settings(max_examples=25, deadline=None)
def test_answers_are_those_of_whole_numbers_to_the_last_bit(value):
    found = text_logits(value)
    assert found.shape == (-(-value.shape[0] // 4), -(-value.shape[1] // 4))
    assert (found == reference(value)).all()


def test_a_larger_picture_too(phantom):
    value, _ = phantom.write(phantom.picture(phantom.fan()), "DOE, JANE", (110, 120))
    assert (text_logits(value) == reference(value)).all()


def test_no_sum_can_leave_the_numbers_that_float32_holds_exactly():
    for layer in network._layers():
        assert (layer.weight == np.rint(layer.weight)).all()
        assert np.abs(layer.weight).sum(axis=(1, 2, 3)).max() * 255 < 2**24


def test_the_reach_of_every_layer_fits_into_the_margin():
    _, _, *rest, last = network._layers()
    assert max(layer.dilation * (layer.weight.shape[2] // 2) for layer in rest) <= 4
    assert all(layer.around * layer.stride <= 4 for layer in network._layers())
    assert last.weight.shape[2:] == (1, 1)


@pytest.mark.parametrize("place", [(0, 0), (16, 0), (0, 24)])
def test_what_is_seen_does_not_depend_on_where_it_is(phantom, place):
    """Far from the picture's edges, a shift by whole cells shifts the answer."""
    big = np.zeros((240, 320), dtype=np.uint8)
    drawn, _ = phantom.write(big, "DOE, JANE", (100, 100))
    moved = np.roll(drawn, place, axis=(0, 1))
    shifted = np.roll(text_logits(drawn), (place[0] // 4, place[1] // 4), axis=(0, 1))
    assert (text_logits(moved)[20:-20, 20:-20] == shifted[20:-20, 20:-20]).all()


# --- one picture after the other -----------------------------------------------------------------


def whole(value):
    """Every cell of the network, in float64, with nothing kept of another picture."""
    cells = value[None].astype(np.float64)
    for number, layer in enumerate(network._layers()):
        size, step, reach = layer.weight.shape[2], layer.stride, layer.dilation
        around = reach * (size // 2)
        padded = np.pad(cells, ((0, 0), (around, around), (around, around)))
        seen = np.lib.stride_tricks.sliding_window_view(padded, [2 * around + 1] * 2, axis=(1, 2))
        sums = np.tensordot(
            layer.weight, seen[:, ::step, ::step, ::reach, ::reach], [(1, 2, 3), (0, 3, 4)]
        )
        scaled = sums.astype(np.float32) * layer.scale[:, None, None] + layer.offset[:, None, None]
        if number == len(network._layers()) - 1:
            return scaled[0]
        cells = np.clip(np.rint(scaled), 0, 255).astype(np.float64)
    raise AssertionError


@st.composite
def cines(draw):
    """Frames on a ground of one level, in which rectangles of noise come, go and stay."""
    height, width = draw(st.tuples(st.integers(1, 190), st.integers(1, 190)))
    noise = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    side = st.tuples(st.integers(0, 190), st.integers(0, 190)).map(sorted)
    ground = np.full((height, width), draw(st.sampled_from([0, 0, 16, 255])), dtype=np.uint8)
    frames, frame = [], ground
    for _ in range(draw(st.integers(1, 3))):
        frame = draw(st.sampled_from([ground, frame])).copy()
        for (top, bottom), (left, right) in draw(st.lists(st.tuples(side, side), max_size=3)):
            part = frame[top:bottom, left:right]
            part[:] = noise.integers(0, 256, part.shape)
        frames.append(frame)
    return frames


@given(cines())
@settings(max_examples=20, deadline=None)
def test_what_is_kept_of_a_picture_changes_no_bit_of_the_next_ones_answer(frames):
    last = LastPicture()
    for frame in frames:
        assert (text_logits(frame, last) == whole(frame)).all()


@given(
    st.integers(100, 170),
    st.integers(100, 170),
    st.integers(0, 255),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
@settings(max_examples=15, deadline=None)
def test_one_point_on_an_even_ground_is_answered_as_if_all_were_computed(height, width, level, at):
    value = np.full((height, width), level, dtype=np.uint8)
    value[round(at[0] * (height - 1)), round(at[1] * (width - 1))] ^= 255
    assert (text_logits(value) == whole(value)).all()


def test_pictures_of_other_sizes_begin_anew():
    last = LastPicture()
    for size in ((120, 130), (130, 120), (9, 7), (120, 130)):
        value = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        assert (text_logits(value, last) == whole(value)).all()


def test_an_error_leaves_nothing_behind_that_is_half_of_one_picture(monkeypatch):
    first, second = np.random.default_rng(0).integers(0, 256, (2, 130, 140), dtype=np.uint8)
    last, calls, answer = LastPicture(), iter(range(100)), network._answer

    def fails_once(*given):
        if next(calls) == 3:
            raise MemoryError
        answer(*given)

    text_logits(first, last)
    with monkeypatch.context() as patched:
        patched.setattr(network, "_answer", fails_once)
        with pytest.raises(MemoryError):
            text_logits(second, last)
    for value in (first, second):
        assert (text_logits(value, last) == whole(value)).all()


def test_a_frame_that_is_changed_after_it_was_seen_is_seen_anew():
    last, frame = LastPicture(), np.zeros((130, 140), dtype=np.uint8)
    text_logits(frame, last)
    frame[40:60, 50:90] = 200
    assert (text_logits(frame, last) == whole(frame)).all()


def test_values_that_are_no_bytes_are_refused():
    with pytest.raises(TypeError, match="uint16"):
        text_logits(np.zeros((8, 8), dtype=np.uint16))
