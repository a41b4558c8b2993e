import pytest

from echostill.distill.objective.core import DistillationObjective
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.platform.errors import UsageError
from echostill.platform.masking.mim import MaskedImageModel
from echostill.platform.models import create_encoder
from echostill.platform.models.attention import attention_heads


def test_relations_need_channels_for_the_heads_of_the_teacher():
    student = MaskedImageModel(create_encoder("tinyusfm-micro", image_size=224))
    wide = create_encoder("usfm", image_size=224)  # twelve heads, and 64 is no multiple
    with pytest.raises(UsageError, match="12 heads"):
        DistillationObjective(student, wide, ObjectiveSettings(relation_weight=1.0))
    with pytest.raises(UsageError, match="no attention in a block"):
        attention_heads(create_encoder("timm:resnet10t", image_size=64), 1)
