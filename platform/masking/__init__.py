"""Masked image modelling: the two corruptions, the decoder and the training task."""
