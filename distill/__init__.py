"""The objective, pretraining and distillation."""

from echostill.distill.distillation import distill
from echostill.distill.pretraining import PretrainConfig, pretrain
from echostill.distill.settings import DistillConfig

__all__ = ["DistillConfig", "PretrainConfig", "distill", "pretrain"]
