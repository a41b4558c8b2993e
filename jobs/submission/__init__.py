"""A stage as a job of a Ray cluster: sent there, and followed from here."""
