"""Sweeps: distillation over a grid of settings, compared on one page."""
