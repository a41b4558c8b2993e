"""Evaluation: labelled benchmarks split by group, probes, fine-tuned heads, costs, the report."""

from echostill.eval.evaluation import EvaluateConfig, evaluate
from echostill.eval.reporting.stage import ReportConfig, report

__all__ = ["EvaluateConfig", "ReportConfig", "evaluate", "report"]
