"""Ingest: files in, pool out."""
