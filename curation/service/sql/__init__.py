"""SQL for callers: checked, and run in worker processes of their own."""
