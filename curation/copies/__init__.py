"""Copies: duplicates inside the pool, and leaks from benchmarks into it."""
