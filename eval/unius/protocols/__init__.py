"""Protocols of the benchmark: what is done with a model on a prepared set, and what is measured."""
