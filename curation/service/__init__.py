"""The coreset service: pick, ask, look. Plain functions on mapped tables under a thin HTTP edge.

What it answers from: Arrow files and a FAISS index, derived from the store's tables once, keyed by
their digests and mapped into memory (``derived``); nothing that would have to be kept in step.
"""
