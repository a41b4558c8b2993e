"""What holds for every term of the table; a new one is tested here as soon as it is in it."""

import importlib

import pytest
import torch

from echostill.distill.objective.outputs import Needs
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.distill.objective.terms.table import TERMS

FOLLOWING = [term for term in TERMS if term.follows_teacher]
BY_NAME = {"argnames": "term", "ids": lambda term: term.name}


def alone(term, weight=1.0, **others):
    """Settings of an objective with one term of those that follow a teacher."""
    weights = {each.weight_key: 0.0 for each in TERMS if each.weight_key}
    return ObjectiveSettings(**{**weights, term.weight_key: weight, **others})


@pytest.mark.parametrize(argvalues=TERMS, **BY_NAME)
def test_a_record_says_what_it_is(term):
    module = importlib.import_module(f"echostill.distill.objective.terms.{term.name}")
    assert module.TERM is term
    assert issubclass(ObjectiveSettings, term.settings)
    assert term.summary.endswith(".")
    assert term.weight_key is None or term.weight_key in term.settings.model_fields
    # The log keeps the means of the objective's own values under these names.
    assert term.name not in {"loss", "distillation", "weight", "consistency"}
    assert len({each.name for each in TERMS}) == len(TERMS)


def test_a_term_is_left_out_by_its_weight_and_without_a_teacher():
    for term in FOLLOWING:
        assert alone(term).terms == (TERMS[0], term)
    every = ObjectiveSettings(**{term.weight_key: 0.5 for term in FOLLOWING})
    assert every.terms == TERMS
    without = ObjectiveSettings(distil=False)
    assert without.terms == tuple(term for term in TERMS if not term.follows_teacher)


@pytest.mark.parametrize(argvalues=FOLLOWING, **BY_NAME)
@pytest.mark.parametrize("level", ["sample", "token"])
def test_a_term_alone_is_trained_weighted_and_logged(term, level, objective_of, batch_of, lose):
    one, other = (objective_of(alone(term, weight, level=level)) for weight in (1.0, 3.0))
    assert list(one.terms) == [TERMS[0].name, term.name]
    batch = batch_of()
    output, more = lose(one, batch), lose(other, batch)
    torch.testing.assert_close(more.distillation, 3 * output.distillation)
    assert bool((output.distillation > 0).all())
    assert (term.name in output.parts) == term.logged
    if term.logged:
        torch.testing.assert_close(output.parts[term.name], output.distillation.mean())
        torch.testing.assert_close(more.parts[term.name], output.parts[term.name])
    torch.testing.assert_close(
        more.loss - more.reconstruction.mean(), 3 * (output.loss - output.reconstruction.mean())
    )
    output.loss.backward()
    for name, module in one.terms[term.name].modules.items():
        assert one.get_submodule(name) is module
        for parameter in module.parameters():
            assert float(parameter.grad.abs().sum()) > 0, name
    assert all(parameter.grad is None for parameter in one.teacher.parameters())


@pytest.mark.parametrize(argvalues=FOLLOWING, **BY_NAME)
def test_the_loss_of_an_image_is_its_own(term, objective_of, batch_of):
    """Once running means stand, an image's loss does not depend on the others of its batch."""
    objective = objective_of(alone(term))
    pixels, masks = batch_of()
    objective(pixels, objective.views(pixels, masks), masks)  # running means take it in
    objective.eval()
    with torch.no_grad():
        whole = objective(pixels, objective.views(pixels, masks), masks)
        for index in range(len(pixels)):
            own = pixels[index : index + 1]
            mask = type(masks)(*(part[index : index + 1] for part in masks))
            single = objective(own, objective.views(own, mask), mask)
            for name in ("distillation", "reconstruction", "weight"):
                found, wanted = getattr(single, name), getattr(whole, name)[index : index + 1]
                torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(argvalues=FOLLOWING, **BY_NAME)
def test_what_a_term_needs_is_asked_of_the_teacher(term, objective_of):
    objective = objective_of(alone(term))
    loss, request = objective.terms[term.name], objective.request
    assert loss.teacher.kinds
    assert request.by_name == {term.name: loss.teacher, "consistency": Needs(pooled=True)}
    assert request.needs == loss.teacher | Needs(pooled=True)
    assert request.views == "separated"
