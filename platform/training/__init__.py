"""The training loop on Ray Train: batches, optimisation, checkpoints, tracking."""
