"""What a kill costs: seconds and shards repeated, against the same stage left alone.

    python benchmarks/resume_overhead.py --json

The stage runs once undisturbed; then its driver is killed when half of the shards are finished, and
the same command runs again. The overhead is what both parts took together beyond the undisturbed
run: a second start-up, and the shards that were being computed (at most one per worker).
"""

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from kill_stages import (
    WORKERS,
    Setting,
    configure,
    contents,
    done_shards,
    make_pool,
    reached,
    repeated,
    start,
)
from machine import describe_machine
from steady import pace_of


def timed(setting: Setting, store: Path, kill_at: int | None) -> tuple[float, float]:
    """Run ingest, killed or not; the seconds it took and those until its first shard began."""
    started = time.time()
    driver = start("ingest", setting, store)
    while kill_at is not None and driver.poll() is None:
        if done_shards(store / "records" / "pool") >= kill_at:
            os.kill(driver.pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    code = reached(driver)
    if kill_at is None and code != 0:
        raise SystemExit((setting.folder / "ingest.log").read_text()[-2000:])
    total = time.time() - started
    if kill_at is not None:
        return total, 0.0
    return total, pace_of(store / "events" / "ingest.jsonl", started, total).startup_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--per-shard", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    calm_seconds, killed_seconds, startups, repeats, same = [], [], [], [], True
    with tempfile.TemporaryDirectory(prefix="echostill-resume-") as folder:
        setting = Setting(Path(folder), options.images, options.per_shard)
        make_pool(setting, seed=0)
        configure(setting)
        for number in range(options.rounds):
            calm, rough = setting.folder / f"calm-{number}", setting.folder / f"rough-{number}"
            seconds, startup = timed(setting, calm, None)
            first, _ = timed(setting, rough, setting.shards // 2)
            second, again = timed(setting, rough, None)
            calm_seconds.append(seconds)
            killed_seconds.append(first + second)
            startups.append(again)
            repeats.append(repeated(rough))
            same = same and contents(calm) == contents(rough)
            print(
                f"round {number}: undisturbed {seconds:.1f} s (start-up {startup:.1f} s), killed "
                f"and resumed {first:.1f} + {second:.1f} s, {repeats[-1]} shard(s) repeated",
                flush=True,
            )
    calm_median, killed_median = map(statistics.median, (calm_seconds, killed_seconds))
    result = {
        "machine": describe_machine(),
        "images": options.images,
        "shards": setting.shards,
        "workers": WORKERS,
        "undisturbed_seconds": round(calm_median, 2),
        "killed_seconds": round(killed_median, 2),
        "overhead_seconds": round(killed_median - calm_median, 2),
        "startup_seconds": round(statistics.median(startups), 2),
        "shards_repeated": max(repeats),
        "shards_repeated_allowed": WORKERS,
        "tables_identical": same,
    }
    for name, value in result.items():
        print(f"{name:<26}{value}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
