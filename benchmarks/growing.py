"""Grow a pool by 1% and by 10%: what it costs, whether it is one ingest of all, and kills.

    python benchmarks/growing.py --images 5000 --kills 20 --json
    python benchmarks/growing.py --folder /tmp/growing --stop-after 240

A pool of synthetic pictures is read and scored, then 1% more pictures come, then 10% more. Bars:
the rows of the grown pool are those of one ingest of all, the parts of the first pool and of its
scores stay to the byte, and 1% more takes at most 3% of the first run's time and the start-up.
Start-up is what the same command takes for a pool of one picture. Then the last growth is killed at
random with SIGKILL, and the same command must end with the files of the undisturbed one: a kill
counts only if the process was at work when it came.

Times are CPU seconds of the command and all its descendants, which other work on the machine does
not change much; elapsed seconds are given beside them. With a folder, what was measured is kept
there, and the same command continues.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from machine import describe_machine
from PIL import Image

SHARES = (0.01, 0.1)
LIMIT = 0.03  # of the first run's time, for 1% more images
HANG_SECONDS = 900
LOOK_SECONDS = 0.2  # between looks at the processes of a command
TRIES = 5  # of a kill that came when the command had ended
TABLES = ("pool", "scores", "quarantine", "records", "sources")


def make_pictures(folder: Path, first: int, last: int) -> None:
    """Write speckled pictures, each of its number alone."""
    folder.mkdir(parents=True)
    for number in range(first, last):
        rng = np.random.default_rng(number)
        _, columns = np.mgrid[:96, :128]
        speckle = rng.rayleigh(0.3, (96, 128)) * np.exp(-columns / rng.uniform(80, 360))
        picture = Image.fromarray((255 * np.clip(speckle, 0, 1)).astype(np.uint8))
        picture.save(folder / f"{number:06d}.jpg")


def configure(root: Path, per_shard: int) -> None:
    """Write one configuration for both stages, the key, and the teacher's weights."""
    import torch

    from echostill.platform.models import create_encoder, save_weights

    torch.manual_seed(0)
    save_weights(create_encoder("usfm-micro"), root / "teacher.safetensors", {})
    (root / "key").write_text("a key for the benchmark of growing pools")
    training = {"steps": 3, "batch_size": 4, "threads": 1}
    content = {
        "teacher": {
            "model": "usfm-micro",
            "weights": str(root / "teacher.safetensors"),
            "image_size": 64,
        },
        "student": "tinyusfm-micro",
        "student_image_size": 64,
        "ingest": {
            "files_per_shard": per_shard,
            "key_file": str(root / "key"),
            "workers": 1,
            "deidentify": {"pixels": "off"},  # speckle has no sector to keep
        },
        "score": {
            "proxy": {"snapshots": 3, "sample": 8, "training": training},
            "rows_per_shard": per_shard,
            "mask_draws": 1,
            "workers": 1,
        },
    }
    (root / "config.yaml").write_text(yaml.safe_dump(content))


def command(stage: str, root: Path, store: str, sources: list[str]) -> list[str]:
    """Return a command as a user would type it."""
    words = [sys.executable, "-m", "echostill.jobs.cli.main", stage]
    words += ["--config", str(root / "config.yaml"), f"store={root / store}"]
    if stage == "ingest":
        words.append(f"source={json.dumps([str(root / source) for source in sources])}")
    return words


class ProcessorTime:
    """CPU seconds of a process and its descendants, from the kernel's table of processes."""

    def __init__(self, process: int) -> None:
        self._root = process
        self._seen: dict[tuple[int, str], float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the seconds, over all that have been seen."""
        self._ended.set()
        self._thread.join()
        return sum(self._seen.values())

    def _watch(self) -> None:
        while not self._ended.is_set():
            self._look()
            self._ended.wait(LOOK_SECONDS)

    def _look(self) -> None:
        table: dict[int, list[str]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            table[int(path.parent.name)] = fields
        family, size = {self._root}, 0
        while size != len(family):
            size = len(family)
            family |= {number for number, fields in table.items() if int(fields[1]) in family}
        tick = os.sysconf("SC_CLK_TCK")
        for number in family & table.keys():
            fields = table[number]  # of the line, after the name: 11 user, 12 system, 19 start
            self._seen[number, fields[19]] = (int(fields[11]) + int(fields[12])) / tick


def run(stage: str, root: Path, store: str, sources: list[str]) -> tuple[float, float]:
    """Run a stage to its end, and return the CPU seconds and the elapsed ones."""
    started = time.monotonic()
    with (root / "output").open("w+") as output:
        process = subprocess.Popen(
            command(stage, root, store, sources), stdout=output, stderr=subprocess.STDOUT
        )
        watch = ProcessorTime(process.pid)
        code = process.wait(timeout=HANG_SECONDS)
        if code:
            output.seek(0)
            raise SystemExit(f"{stage} failed:\n{output.read()}")
    return round(watch.stop(), 2), round(time.monotonic() - started, 2)


def files(root: Path, folders: tuple[str, ...] = TABLES) -> dict[str, bytes]:
    """Return the tables and records of a store."""
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*"))]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.is_file()}


def same_rows(one: Path, other: Path) -> bool:
    """Say whether two pools have the same rows, in any order."""
    from echostill.platform.tables.store import Store

    tables = [Store(str(root)).open_pool().read().sort_by("image_id") for root in (one, other)]
    return bool(tables[0].equals(tables[1]))


def copy(root: Path, name: str, to: str) -> None:
    """Copy a store, over what is there."""
    shutil.rmtree(root / to, ignore_errors=True)
    shutil.copytree(root / name, root / to)


def grow(stage: str, root: Path, before: str, after: str, sources: list[str]) -> dict[str, Any]:
    """Run a stage on a copy of a store; return what it took, and whether the old parts stayed."""
    if before:
        copy(root, before, "working")
    else:
        shutil.rmtree(root / "working", ignore_errors=True)
    old = files(root / "working", ("pool", "scores"))
    processor, elapsed = run(stage, root, "working", sources)
    new = files(root / "working", ("pool", "scores"))
    copy(root, "working", after)
    kept = all(new.get(name) == data for name, data in old.items())
    return {"processor": processor, "elapsed": elapsed, "kept": kept}


def kill_and_finish(
    stage: str, root: Path, before: str, after: str, sources: list[str], chance: random.Random
) -> dict[str, Any]:
    """Kill a growth at a random moment, and finish it with the same command.

    Returns:
        When it was killed, how far it was, and whether the files differ from the undisturbed ones.
    """
    usual = json.loads((root / "measured.json").read_text())[f"{stage} {after}"]["elapsed"]
    for _ in range(TRIES):
        copy(root, before, "working")
        moment = chance.uniform(0, usual)
        process = subprocess.Popen(
            command(stage, root, "working", sources),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(moment)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            begun = files(root / "working") != files(root / before)
            run(stage, root, "working", sources)
            differs = files(root / "working") != files(root / after)
            return {"stage": stage, "at": round(moment, 1), "begun": begun, "differs": differs}
    raise SystemExit(f"{stage} had always ended before it could be killed")


class Steps:
    """What has been measured, kept in the folder so that another call continues."""

    def __init__(self, root: Path, stop_after: float) -> None:
        self._file, self._until = root / "measured.json", time.monotonic() + stop_after
        self.done = json.loads(self._file.read_text()) if self._file.exists() else {}

    def take(self, name: str, step: Callable[[], Any]) -> Any:
        """Do a step unless it is done, and return its result."""
        if name not in self.done:
            if time.monotonic() > self._until:
                raise SystemExit(f"stopped before '{name}': the same command continues")
            self.done[name] = step()
            self._file.write_text(json.dumps(self.done, indent=1))
        return self.done[name]


def measure(root: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Do all steps that are left, and return the result."""
    steps, stages = Steps(root, given.stop_after), given.stages.split(",")
    sizes = [given.images, *(round(given.images * share) for share in SHARES)]
    edges = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    names = [f"pictures {number}" for number in range(len(sizes))]
    if not (root / "config.yaml").exists():
        make_pictures(root / "one", 0, 1)
        for name, first, last in zip(names, edges[:-1], edges[1:], strict=True):
            make_pictures(root / name, first, last)
        configure(root, given.per_shard)
    before: dict[str, str] = {}  # the store that each of the last growths began with
    took: dict[str, dict[str, Any]] = {}
    finished = ""
    for label, sources in (
        ("start-up", ["one"]),
        *((f"+{size}", names[: number + 1]) for number, size in enumerate(sizes)),
    ):
        store = finished
        for stage in stages:
            after = f"{stage} {label}"
            before[after] = store
            took[after] = steps.take(
                f"{stage} {after}",
                lambda stage=stage, store=store, after=after, sources=sources: grow(
                    stage, root, store, after, sources
                ),
            )
            store = after
        finished = "" if label == "start-up" else store
    steps.take("whole", lambda: run("ingest", root, "whole", names))
    last = f"+{sizes[-1]}"
    kills = []
    for number in range(given.kills):
        stage = stages[number % len(stages)]
        after, chance = f"{stage} {last}", random.Random(f"{given.seed} {number}")
        kills.append(
            steps.take(
                f"kill {number}",
                lambda stage=stage, after=after, chance=chance: kill_and_finish(
                    stage, root, before[after], after, names, chance
                ),
            )
        )

    def cost(stage: str, clock: str) -> float:
        """What the first growth took beyond start-up, as a share of the first run."""
        first, more, start = (
            took[f"{stage} {label}"][clock]
            for label in (f"+{sizes[0]}", f"+{sizes[1]}", "start-up")
        )
        return round(max(more - start, 0) / first, 4)

    clocks = ("processor", "elapsed")
    return {
        "machine": describe_machine(),
        "images": edges[-1],
        "seconds": {name: {clock: one[clock] for clock in clocks} for name, one in took.items()},
        "old parts untouched": all(one["kept"] for one in took.values()),
        "rows of one ingest": same_rows(root / f"{stages[-1]} {last}", root / "whole"),
        "cost of 1%": {stage: {clock: cost(stage, clock) for clock in clocks} for stage in stages},
        "kills": len(kills),
        "kills after it had begun to write": sum(one["begun"] for one in kills),
        "differing after kills": sum(one["differs"] for one in kills),
    }


def main() -> None:
    """Measure, and say whether the bars are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--per-shard", type=int, default=256)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stages", default="ingest,score")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="Where stores and measurements stay; default none do.")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="Seconds.")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="growing-") as folder:
        root = Path(given.folder or folder)
        root.mkdir(parents=True, exist_ok=True)
        result = measure(root, given)
    print(json.dumps(result) if given.json else json.dumps(result, indent=1))
    cheap = all(cost["processor"] <= LIMIT for cost in result["cost of 1%"].values())
    met = result["old parts untouched"] and cheap and result["rows of one ingest"]
    raise SystemExit(0 if met and not result["differing after kills"] else 1)


if __name__ == "__main__":
    main()
