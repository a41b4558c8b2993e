"""Manifests: what their columns mean, their rows, and where the listed files lie."""
