"""What a stage asks of a Ray cluster: plans sized by its nodes, and waiting for nodes that come."""
