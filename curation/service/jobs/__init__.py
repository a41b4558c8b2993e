"""Picks in the background: a queue, and a process for each."""
