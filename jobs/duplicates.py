"""The duplicates stage as a Ray job: `python jobs/duplicates.py -c ...` by `ray job submit`."""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its select.py would hide Python's own select module
    from echostill.jobs.cli.main import main

    main(["duplicates", *sys.argv[1:]])
