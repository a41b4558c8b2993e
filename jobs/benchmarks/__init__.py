"""Benchmarks: a set prepared with the search for copies of curation."""
