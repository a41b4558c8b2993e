import math

import numpy as np
import pytest
import torch
from torch import nn

from echostill.platform.training.optimisation import NORM_MEMORY, GradientClip

NORMS = [5.0, 4.0, 40.0, 3.0, 9.0, 0.5]


def clipped(clip, norm, member=""):
    """Clip a gradient of a norm; return the norm it had and the one it has."""
    parameters = [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.full((2,), norm / 2, dtype=torch.float64)
    found = clip(member, parameters)
    return float(found), float(torch.cat([p.grad for p in parameters]).norm())


def test_a_relative_limit_is_a_multiple_of_the_mean_after_clipping():
    clip, kept, over = GradientClip(1.5, relative=True), [], 0
    for norm in NORMS:
        weights = NORM_MEMORY ** np.arange(len(kept) - 1, -1, -1)
        limit = 1.5 * (weights * kept).sum() / weights.sum() if kept else math.inf
        before, after = clipped(clip, norm)
        assert before == pytest.approx(norm)
        assert after == pytest.approx(min(norm, limit), rel=1e-5)  # torch adds 1e-6 to the norm
        kept.append(min(norm, limit))
        over += norm > limit
    assert over == 2
    assert clip.shares() == {"": pytest.approx(over / len(NORMS))}
    assert clip.shares() == {}


def test_members_have_norms_of_their_own_and_a_restart_goes_on():
    whole, first = (GradientClip(1.2, relative=True) for _ in range(2))
    for norm in NORMS[:3]:
        for clip in (whole, first):
            clipped(clip, norm, "a")
            clipped(clip, 10 * norm, "b")
    again = GradientClip(1.2, relative=True, norms=dict(first.norms))
    for norm in NORMS[3:]:
        assert clipped(whole, norm, "a") == clipped(again, norm, "a")
        assert clipped(whole, 10 * norm, "b") == clipped(again, 10 * norm, "b")
    assert again.norms == whole.norms
    assert whole.norms["b"][0] == pytest.approx(10 * whole.norms["a"][0])


def test_an_absolute_limit_and_none():
    fixed, free = GradientClip(3.0), GradientClip(None)
    assert [clipped(fixed, norm)[1] for norm in NORMS] == pytest.approx(
        [min(norm, 3.0) for norm in NORMS], rel=1e-5
    )
    assert [clipped(free, norm)[1] for norm in NORMS] == pytest.approx(NORMS)
    assert fixed.shares() == {"": pytest.approx(4 / 6)}
    assert free.shares() == {"": 0.0}


def test_a_norm_that_is_no_number_is_not_remembered():
    clip = GradientClip(2.0, relative=True)
    clipped(clip, 4.0)
    before = dict(clip.norms)
    assert math.isnan(clipped(clip, math.nan)[0])
    assert clip.norms == before
