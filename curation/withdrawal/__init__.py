"""Withdrawing images: what is meant, who has seen it, everything that goes, and the receipt."""
