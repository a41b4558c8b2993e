"""Export of a trained model, with a parity report."""
