"""Losses added up and weighed, against loops over images, tokens, blocks and views."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.distill.objective.weighing import add_up, averaged, by_image, mean_by_image, weigh


def loops(rows, images, weight, by_block):
    """Loss of each image, plain and weighted."""
    views = len(rows[0]) // images
    plain, weighted = np.zeros(images), np.zeros(images)
    for block, row in enumerate(rows):
        for image in range(images):
            own = weight[block] if by_block and len(weight) > 1 else weight.mean(axis=0)
            own = own[image]
            for view in range(views):
                losses = np.atleast_1d(row[view * images + image])
                # A weight by token is of the last tokens; those before have their image's.
                if own.ndim == 0 or row.ndim == 1:
                    each = np.full(len(losses), own.mean())
                else:
                    prefix = len(losses) - len(own)
                    each = np.concatenate([np.full(prefix, own.mean()), own])
                plain[image] += losses.mean()
                weighted[image] += (each * losses).mean()
    return plain, weighted


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 4),
    views=st.integers(1, 2),
    blocks=st.integers(1, 3),
    tokens=st.sampled_from([None, 1, 5]),
    prefix=st.integers(0, 2),
    by_token=st.booleans(),
    weights=st.booleans(),
)
def test_the_sum_is_that_of_the_loops(
    seed, images, views, blocks, tokens, prefix, by_token, weights
):
    random = np.random.default_rng(seed)
    by_block = weights and not prefix  # attention, which has the prefix, has no weight by block
    shape = (views * images,) if tokens is None else (views * images, prefix + tokens)
    rows = [random.random(shape) for _ in range(blocks)]
    own = (images, tokens or 5) if by_token else (images,)
    weight = random.random((blocks if weights else 1, *own))
    plain, weighted = loops(rows, images, weight, by_block)
    given_rows = [torch.from_numpy(row) for row in rows]
    whole = add_up(given_rows, images)
    found = weigh(given_rows, whole, torch.from_numpy(weight), by_block=by_block)
    assert found.shape == whole.shape
    np.testing.assert_allclose(by_image(whole).numpy(), plain, rtol=1e-12)
    np.testing.assert_allclose(by_image(found).numpy(), weighted, rtol=1e-12)
    mean_rows = averaged(given_rows, images)
    mean = add_up(mean_rows, images)
    found = weigh(mean_rows, mean, torch.from_numpy(weight), by_block=by_block)
    np.testing.assert_allclose(by_image(mean).numpy(), plain / (blocks * views), rtol=1e-12)
    np.testing.assert_allclose(by_image(found).numpy(), weighted / (blocks * views), rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 4), (3, 4), (1, 4, 5), (3, 4, 5)])
def test_the_mean_weight_of_an_image_is_over_blocks_and_tokens(shape):
    weight = torch.rand(shape, dtype=torch.float64)
    expected = weight.numpy().mean(axis=(0, *range(2, len(shape))))
    np.testing.assert_allclose(mean_by_image(weight).numpy(), expected, rtol=1e-12)
