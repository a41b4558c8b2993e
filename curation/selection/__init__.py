"""Selection: scores in, coreset out, every pool row with its reason."""
