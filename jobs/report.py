"""The report stage as a Ray job: `ray job submit --working-dir . -- python jobs/report.py --config ...`."""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its select.py would hide Python's own select module
    from echostill.platform.cli import main

    main(["report", *sys.argv[1:]])
