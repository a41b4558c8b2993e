import pytest
from pydantic import ValidationError

from echostill.distill import DistillConfig
from echostill.distill.objective.settings import PRESETS, ObjectiveSettings
from echostill.platform.config import validate
from echostill.platform.errors import UsageError


def test_without_a_preset_images_weigh_alike_unless_something_of_the_weight_is_asked_for():
    assert ObjectiveSettings() == ObjectiveSettings(preset="fixed-weight")
    assert ObjectiveSettings(beta=2.0).weighting == "fixed"
    for values in (
        {"weighting": "linear"},
        {"centring": False},
        {"centre": "view"},
        {"level": "token"},
        {"consistency": "each"},
        {"combination": "balance"},
    ):
        asked = ObjectiveSettings(**values)
        assert asked == ObjectiveSettings(preset="tinyusfm", **values)
        assert asked.weighting == "linear"


@pytest.mark.parametrize("values", [{"centre": "view"}, {"level": "token"}, {"centring": False}])
@pytest.mark.parametrize("fixed", [{"preset": "fixed-weight"}, {"weighting": "fixed"}])
def test_settings_of_a_weight_that_is_fixed_are_refused(fixed, values):
    (key,) = values
    with pytest.raises(ValidationError, match=rf"{key} .* the weight of .* is fixed: use preset"):
        ObjectiveSettings(**fixed, **values)


def test_presets_fill_in_what_is_not_given():
    assert ObjectiveSettings(preset="fixed-weight").weighting == "fixed"
    assert ObjectiveSettings(preset="fixed-weight", weighting="relu").weighting == "relu"
    assert not ObjectiveSettings.model_validate_json('{"preset": "mim-only"}').distil
    saved = ObjectiveSettings(preset="mim-only").model_dump_json()
    assert ObjectiveSettings.model_validate_json(saved) == ObjectiveSettings(preset="mim-only")
    with pytest.raises(ValidationError, match="fixed-weight"):
        ObjectiveSettings(preset="fixed")
    with pytest.raises(ValidationError, match="weights in"):
        ObjectiveSettings(weighting="softmax", combination="balance")
    for name in PRESETS:
        chosen = ObjectiveSettings(preset=name)
        assert ObjectiveSettings.model_validate_json(chosen.model_dump_json()) == chosen


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"preset": "tinyusfm", "views": "joint"}, "no consistency"),
        ({"preset": "tinyusfm", "teacher_sees": "image"}, "always agree"),
        ({"token_weight": 0.0}, "nothing of the teacher"),
        (
            {"token_weight": 0.0, "attention_weight": 1.0, "consistency": "each"},
            "token_weight is 0",
        ),
        ({"attention_layers": (6,), "attention_teacher_layers": (5, 6)}, "equally many"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values, words):
    with pytest.raises(ValidationError, match=words):
        ObjectiveSettings(**values)


def test_blocks_are_lists_in_a_configuration_file():
    given = {"layers": [5, 1], "teacher_layers": [6, 2]}
    values = {"students": [{"objective": given}]}
    (student,) = validate(DistillConfig, values).students
    assert (student.objective.layers, student.objective.teacher_layers) == ((5, 1), (6, 2))
    with pytest.raises(UsageError, match=r"objective\.layers"):
        validate(DistillConfig, {"students": [{"objective": {"layers": ["1", "2"]}}]})
