"""Evaluation: labelled benchmarks split by group, probes, fine-tuned heads, costs, the report."""

from typing import TYPE_CHECKING

from echostill.platform.lazy import lazy

if TYPE_CHECKING:
    from echostill.eval.evaluation import EvaluateConfig, evaluate
    from echostill.eval.reporting.stage import ReportConfig, report

_HOMES = {
    "EvaluateConfig": "evaluation",
    "ReportConfig": "reporting.stage",
    "evaluate": "evaluation",
    "report": "reporting.stage",
}

__all__ = ["EvaluateConfig", "ReportConfig", "evaluate", "report"]

__getattr__ = lazy(__name__, _HOMES)
