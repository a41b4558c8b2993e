"""Stages as Ray jobs: what is sent to a cluster, and how a job there is followed."""
