"""Evaluation: labelled benchmarks split by group, probes, fine-tuned heads, costs, the report."""

from echostill.eval.evaluation import EvaluateConfig, evaluate

__all__ = ["EvaluateConfig", "evaluate"]
