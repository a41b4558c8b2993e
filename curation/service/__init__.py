"""The coreset service: plain functions on mapped tables, and HTTP routes that call them.

It answers from Arrow files and a FAISS index, derived once from the store's tables, named by their
digests and mapped into memory (``data.derived``). Nothing has to be kept in step with the store.

Imports go one way: ``serving`` and ``on_ray`` start ``http``, whose routes call ``answers``, which
read ``data``; ``sql`` and ``jobs`` run work in processes of their own; all raise ``problems``.
"""
