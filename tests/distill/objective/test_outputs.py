"""What is needed of a network, and that a pass gives exactly that."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from echostill.distill.objective.outputs import Needs, all_needs, ask_student, ask_teacher
from echostill.platform.masking.mim import MaskedImageModel
from echostill.platform.models import create_encoder
from echostill.platform.models.attention import capture_attention

BLOCKS = st.lists(st.integers(1, 12), max_size=4).map(tuple)
NEEDS = st.builds(Needs, st.booleans(), st.booleans(), BLOCKS, BLOCKS)


@given(NEEDS, NEEDS)
def test_needs_add_up_like_sets(one, other):
    both = one | other
    assert both == other | one == all_needs([one, other, one])
    for part in (one, other):
        assert part.without(both) == Needs()
        assert part | both == both
        assert part.only(part.kinds) == part
    left = both.without(other)
    assert left.without(other) == left
    assert left | other == both
    assert set(left.blocks) == set(one.blocks) - set(other.blocks)
    assert both.kinds == one.kinds | other.kinds


def test_needs_are_sorted_and_described():
    assert Needs(blocks=(6, 2, 6)) == Needs(blocks=(2, 6))
    assert not Needs().kinds
    needs = Needs(pooled=True, tokens=True, blocks=(4, 2), attention=(6,))
    assert str(needs) == (
        "pooled feature, tokens after blocks 2, 4, final tokens, attention of block 6"
    )
    assert str(Needs()) == ""


@pytest.mark.parametrize(
    "needs",
    [
        Needs(),
        Needs(pooled=True),
        Needs(tokens=True, blocks=(5, 1)),
        Needs(blocks=(6,), attention=(2, 6)),
    ],
    ids=lambda needs: str(needs) or "nothing",
)
def test_a_pass_gives_what_is_needed_and_no_more(needs):
    """Compared with the networks themselves; whoever declares too little finds nothing there."""
    torch.manual_seed(0)
    views = torch.rand(2, 3, 64, 64)
    teacher = create_encoder("usfm-micro", image_size=64).eval()
    student = MaskedImageModel(create_encoder("tinyusfm-micro", image_size=64)).eval()
    prediction, of_student = ask_student(student, views, needs)
    with torch.no_grad():
        torch.testing.assert_close(prediction, student(views).prediction)
    assert prediction.requires_grad
    of_teacher = ask_teacher(teacher, views, needs)
    for encoder, found in ((teacher, of_teacher), (student.encoder, of_student)):
        with torch.no_grad(), capture_attention(encoder, needs.attention) as attention:
            wanted = encoder(views, needs.blocks)
        prefix = encoder.prefix_tokens
        assert prefix == 1
        assert (found.pooled is not None) == needs.pooled
        assert (found.tokens is not None) == needs.tokens
        if needs.pooled:
            torch.testing.assert_close(found.pooled, wanted.pooled)
        if needs.tokens:
            torch.testing.assert_close(found.tokens, wanted.tokens[:, prefix:])
        assert tuple(found.blocks) == needs.blocks
        for tokens, own in zip(found.blocks.values(), wanted.intermediate, strict=True):
            torch.testing.assert_close(tokens, own[:, prefix:])
        assert tuple(found.attention) == needs.attention
        for parts, own in zip(found.attention.values(), attention, strict=True):
            torch.testing.assert_close(parts.logits(), own.logits())
