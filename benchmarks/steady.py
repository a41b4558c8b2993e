"""The steady pace of a sharded stage, from its event log: start-up is taken away."""

import itertools
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pace:
    """Rows per second between the first finished shard and the last, and what came before."""

    rows_per_second: float
    processor_seconds: float  # of a row, over all threads of its worker
    startup_seconds: float
    total_seconds: float
    events: list[dict]


def run_stage(stage: str, store: Path, settings: list[str], config: Path | None = None) -> Pace:
    """Run a stage as a user would, with a Ray of its own, and read its pace from its log."""
    command = [sys.executable, "-m", "echostill.jobs.cli.main", stage, f"store={store}"]
    command += ["--config", str(config)] if config else []
    started = time.time()
    done = subprocess.run(
        [*command, *settings, "progress=false"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr[-3000:])
    return pace_of(store / "events" / f"{stage}.jsonl", started, time.time() - started)


def pace_of(log: Path, started: float, total: float) -> Pace:
    """Read the pace of the log's last run.

    Shards of several workers end in turns: the clock runs from the end of each worker's first
    shard, so that neither a worker's start nor its first batch counts. The clock is the workers',
    because the driver hears of shards in bunches.
    """
    events = [json.loads(line) for line in log.open()]
    events = [event for event in events if event["run"] == events[-1]["run"]]
    shards = [event for event in events if event["event"] == "shard" and event["seconds"]]
    shards.sort(key=lambda event: event["ended"])
    first: dict[str, float] = {}
    rows, processor = 0, 0.0
    last: dict[str, float] = {}
    for event in shards:
        worker, ended = event["worker"], event["ended"]
        if worker in first:
            rows += event["rows_out"] + event["quarantined"]
            processor += event["seconds"]["processor"]
            last[worker] = ended
        else:
            first[worker] = ended
    if not last:
        raise SystemExit("too few shards to tell a steady pace: more images, or smaller shards")
    seconds = sum(last[worker] - first[worker] for worker in last) / len(last)
    begun = min(event["ended"] - sum_of(event) for event in shards)
    return Pace(rows / seconds, processor / rows, begun - started, total, events)


def sum_of(event: dict) -> float:
    """Seconds that a worker spent on a shard."""
    return event["seconds"]["work"] + event["seconds"]["write"]


def tile_files(source: Path, target: Path, count: int, suffixes: tuple[str, ...]) -> list[str]:
    """Copy a folder's files until there are so many; the copies differ in their names alone."""
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes)
    if not found:
        raise SystemExit(f"no images in '{source}'")
    target.mkdir(parents=True)
    files = []
    for number, path in zip(range(count), itertools.cycle(found), strict=False):
        files.append(str(target / f"{number:06d}{path.suffix}"))
        shutil.copyfile(path, files[-1])
    return files
