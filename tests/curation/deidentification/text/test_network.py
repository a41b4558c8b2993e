import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import signal

from echostill.curation.deidentification.text import network
from echostill.curation.deidentification.text.network import text_logits


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
    assert last.weight.shape[2:] == (1, 1)


@pytest.mark.parametrize("place", [(0, 0), (16, 0), (0, 24)])
def test_what_is_seen_does_not_depend_on_where_it_is(phantom, place):
    """Far from the picture's edges, a shift by whole cells shifts the answer."""
    big = np.zeros((240, 320), dtype=np.uint8)
    drawn, _ = phantom.write(big, "DOE, JANE", (100, 100))
    moved = np.roll(drawn, place, axis=(0, 1))
    shifted = np.roll(text_logits(drawn), (place[0] // 4, place[1] // 4), axis=(0, 1))
    assert (text_logits(moved)[20:-20, 20:-20] == shifted[20:-20, 20:-20]).all()
