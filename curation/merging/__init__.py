"""Several stores merged into one pool."""
