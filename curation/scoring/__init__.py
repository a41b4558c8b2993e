"""Scoring: teacher features and proxy gradients of every pool image."""
