"""One thin script per stage, and the whole pipeline: what `ray job submit` runs."""
