"""Benchmarks as a Ray job: `python jobs/bench.py run --config ...` under `ray job submit`."""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its select.py would hide Python's own select module
    from echostill.jobs.cli.main import main

    main(["bench", *sys.argv[1:]])
