"""The objective, pretraining, distillation, the teacher cache and export."""

from typing import TYPE_CHECKING

from echostill.platform.lazy import lazy

if TYPE_CHECKING:
    from echostill.distill.cache.stage import make_cache
    from echostill.distill.cache.verifying import verify_cache
    from echostill.distill.distillation import distill
    from echostill.distill.exporting.stage import ExportResult, export
    from echostill.distill.pretraining import PretrainConfig, pretrain
    from echostill.distill.settings import DistillConfig

_HOMES = {
    "DistillConfig": "settings",
    "ExportResult": "exporting.stage",
    "PretrainConfig": "pretraining",
    "distill": "distillation",
    "export": "exporting.stage",
    "make_cache": "cache.stage",
    "pretrain": "pretraining",
    "verify_cache": "cache.verifying",
}

__all__ = [
    "DistillConfig",
    "ExportResult",
    "PretrainConfig",
    "distill",
    "export",
    "make_cache",
    "pretrain",
    "verify_cache",
]

__getattr__ = lazy(__name__, _HOMES)
