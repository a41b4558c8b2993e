"""Growth of a pool: which files it was made from, and which of those listed now are new."""
