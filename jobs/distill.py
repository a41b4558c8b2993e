"""The distill stage as a Ray job: `ray job submit --working-dir . -- python jobs/distill.py --config ...`."""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its select.py would hide Python's own select module
    from echostill.platform.cli import main

    main(["distill", *sys.argv[1:]])
