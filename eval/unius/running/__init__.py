"""Runs of the benchmark: which sets, models and seeds, as Ray tasks, and what they leave."""
