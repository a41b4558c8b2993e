"""The distillation objective and what it compares."""
