"""The select stage as a Ray job: `python jobs/select.py --config ...` under `ray job submit`."""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its select.py would hide Python's own select module
    from echostill.jobs.cli.main import main

    main(["select", *sys.argv[1:]])
