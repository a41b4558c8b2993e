"""The loss terms: each is a module that ends with its record, ``TERM``."""
