"""Sharded stages: shards through Ray Data, finished for good one by one, and their event log."""
