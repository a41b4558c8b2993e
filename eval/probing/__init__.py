"""Frozen features under cross-validation: probes, few labels, candidates without any training."""
