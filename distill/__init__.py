"""The objective, pretraining and distillation."""

from echostill.distill.distillation import DistillConfig, distill
from echostill.distill.pretraining import PretrainConfig, pretrain

__all__ = ["DistillConfig", "PretrainConfig", "distill", "pretrain"]
