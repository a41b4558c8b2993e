"""Explanations: why an image is in a coreset or not, and how two coresets differ."""
