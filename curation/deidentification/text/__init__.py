"""Lettering in a frame: found by a small network, by OCR, or by both."""
