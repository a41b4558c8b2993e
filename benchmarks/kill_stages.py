"""Kill ingest and score at random, resume, and compare every byte with a run left alone.

    python benchmarks/kill_stages.py --kills 20 --json

Each kill is a SIGKILL of the driver, of the actor that computes shards, of another Ray worker or of
the raylet, at a moment drawn from the seed. Whatever ends is started again with the same command.
With --node scoring also runs on a cluster of a head and two nodes, one of which is killed, with all
that runs there, and stays away: the other node has to do its shards too.
Bars: the tables, quarantines and manifests of the killed store are those of the undisturbed one, no
run hangs, a killed raylet ends the run with exit code 1 and a message, and a kill repeats at most
one shard per worker (counted by the marks that cut attempts leave, in the event log).
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from machine import describe_machine
from PIL import Image

KINDS = ("driver", "actor", "worker", "raylet")
STAGES = ("ingest", "score")
WORKERS = 2
HANG_SECONDS = 600
LATE_KILLS = 20  # kills that may come too late in a stage, before it counts as too quick for them


@dataclass
class Setting:
    """Where the runs happen and how large they are."""

    folder: Path
    images: int
    per_shard: int

    @property
    def shards(self) -> int:
        return -(-self.images // self.per_shard)


@dataclass
class Tally:
    """What the kills came to."""

    kills: Counter = field(default_factory=Counter)
    allowed: int = 0  # shards that the kills may repeat: one per worker that was cut
    silent: list[str] = field(default_factory=list)  # ends without a message
    resumed: int = 0


def make_pool(setting: Setting, seed: int) -> None:
    """Write speckled pictures; every ninth is cut short and belongs in quarantine."""
    pictures = setting.folder / "pictures"
    pictures.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(setting.images):
        _, columns = np.mgrid[:480, :640]
        speckle = rng.rayleigh(0.3, (480, 640)) * np.exp(-columns / rng.uniform(200, 900))
        path = pictures / f"{number:04d}.jpg"
        Image.fromarray((255 * np.clip(speckle, 0, 1)).astype(np.uint8)).save(path)
        if number % 9 == 5:
            path.write_bytes(path.read_bytes()[:400])


def configure(setting: Setting) -> Path:
    """Write the teacher's weights and one configuration for both stages."""
    import torch
    import yaml

    from echostill.platform.models import create_encoder, save_weights

    torch.manual_seed(0)
    weights = setting.folder / "teacher.safetensors"
    save_weights(create_encoder("usfm-micro"), weights, {})
    training = {"steps": 3, "batch_size": 4, "threads": 1}
    content = {
        "teacher": {"model": "usfm-micro", "weights": str(weights)},
        "student": "tinyusfm-micro",
        "ingest": {
            "source": str(setting.folder / "pictures"),
            "files_per_shard": setting.per_shard,
            "max_error_rate": 0.5,
            "workers": WORKERS,
            "deidentify": {"pixels": "off"},  # speckle has no sector to keep
        },
        "score": {
            "proxy": {"snapshots": 3, "sample": 8, "training": training},
            "rows_per_shard": setting.per_shard,
            "batch_size": 4,
            "workers": WORKERS,
        },
    }
    path = setting.folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(stage: str, setting: Setting, store: Path, *keys: str) -> subprocess.Popen:
    """Start a stage as a user would."""
    command = [sys.executable, "-m", "echostill.jobs.cli.main", stage]
    command += ["--config", str(setting.folder / "config.yaml"), f"store={store}", *keys]
    with said(stage, setting, store).open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def said(stage: str, setting: Setting, store: Path) -> Path:
    """The file of what a stage said last."""
    return setting.folder / f"{stage}-{store.name}.log"


def descendants(process: int) -> dict[int, str]:
    """Return the titles of a process's children and theirs."""
    found: dict[int, str] = {}
    for entry in Path("/proc").glob(f"{process}/task/*/children"):
        try:
            children = [int(word) for word in entry.read_text().split()]
        except OSError:
            continue
        for child in children:
            try:
                title = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                name = Path(f"/proc/{child}/comm").read_text().strip()
            except OSError:
                continue
            found[child] = "raylet" if name == "raylet" else title.strip()
            found |= descendants(child)
    return found


def victims(kind: str, driver: int) -> list[int]:
    """Return the processes that a kind of kill may hit."""
    if kind == "driver":
        return [driver]
    titles = descendants(driver)
    if kind == "raylet":
        return [number for number, title in titles.items() if title == "raylet"]
    workers = {number: title for number, title in titles.items() if title.startswith("ray::")}
    actors = [number for number, title in workers.items() if "MapWorker" in title]
    return actors if kind == "actor" else [number for number in workers if number not in actors]


def done_shards(folder: Path) -> int:
    return len(list((folder / "done").glob("*.json")))


def kill_once(
    kind: str, driver: subprocess.Popen, table: Path, after: int, delay: float, rng: random.Random
) -> bool:
    """Kill as soon as so many shards are finished and some seconds passed; False if it was late."""
    while driver.poll() is None:
        begun = any((table / "running").glob("*"))
        if begun and done_shards(table) >= after:
            time.sleep(delay)
            hit = sorted(victims(kind, driver.pid))
            if hit and not (table / "manifest.json").exists():
                try:
                    os.kill(rng.choice(hit), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                return True
        time.sleep(0.01)
    return False


def reopen(table: Path) -> None:
    """Take all shards but the first of a finished table away, for a kill that came too late."""
    (table / "manifest.json").unlink()
    for record in sorted((table / "done").glob("*.json"))[1:]:
        record.unlink()


def reached(driver: subprocess.Popen) -> int:
    """Wait for a run to end; a run that hangs is itself ended, and is a failure."""
    try:
        return driver.wait(HANG_SECONDS)
    except subprocess.TimeoutExpired:
        driver.kill()
        raise SystemExit("FAILED: a run hung after a kill") from None


def disturb(
    stage: str, kinds: list[str], setting: Setting, store: Path, rng: random.Random, tally: Tally
) -> None:
    """Run a stage to its end through the given kills."""
    table = store / "records" / ("pool" if stage == "ingest" else "scores")
    waiting, late = list(kinds), 0
    while True:
        driver = start(stage, setting, store)
        ending = None
        while waiting:
            # Each kill leaves shards for the kills after it.
            done = done_shards(table)
            spare = max(setting.shards - 1 - done - len(waiting), 0)
            after, delay = done + rng.randint(0, min(spare, 2)), rng.uniform(0, 0.3)
            if not kill_once(waiting[0], driver, table, after, delay, rng):
                break
            ending = waiting.pop(0)
            tally.kills[ending] += 1
            tally.allowed += WORKERS if ending in ("driver", "raylet") else 1
            if ending in ("driver", "raylet"):
                break
            time.sleep(0.5)
        code = reached(driver)
        text = said(stage, setting, store).read_text()
        if code == 0:
            if not waiting:
                return
            late += 1
            if late > LATE_KILLS:
                raise SystemExit(f"FAILED: {stage} is too quick to be killed: more --images")
            reopen(table)
            continue
        tally.resumed += 1
        # Ray ends a driver whose node it takes for dead, and says so itself.
        told = "error: " in text or "has been marked dead" in text
        if ending != "driver" and (code != 1 or not told):
            tally.silent.append(f"{stage} after {ending}: exit code {code}, said {text[-2000:]!r}")
        if tally.resumed > 4 * sum(tally.kills.values()) + 4:
            raise SystemExit(f"FAILED: {stage} does not get to its end: {text[-2000:]}")


class Nodes:
    """A head without CPUs and two nodes of one CPU, of which one is lost while a stage runs."""

    def __init__(self, setting: Setting) -> None:
        from ray.cluster_utils import Cluster

        self._setting = setting
        small = {"object_store_memory": 80 * 2**20}
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(setting.folder / "r")}
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, **small})
        before = victims("raylet", os.getpid())
        for _ in range(WORKERS):
            self._cluster.add_node(num_cpus=1, **small)
        self._raylets = set(victims("raylet", os.getpid())) - set(before)

    def lose_one(self, store: Path) -> str:
        """Score on them; kill the node of an actor once a shard is finished. Returns the log."""
        driver = start("score", self._setting, store, f"address={self._cluster.address}")
        table, lost = store / "records" / "scores", 0
        while driver.poll() is None and not lost:
            time.sleep(0.02)
            if done_shards(table) and any((table / "running").glob("*")):
                lost = next((one for one in self._raylets if victims("actor", one)), 0)
        if not lost:
            raise SystemExit("FAILED: scoring ended before its node was killed")
        for number in (lost, *descendants(lost)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        code, text = reached(driver), said("score", self._setting, store).read_text()
        self._cluster.shutdown()
        if code != 0:
            raise SystemExit(f"FAILED: the stage whose node was lost: {text[-2000:]}")
        return text


def contents(store: Path) -> dict[str, bytes]:
    """Return all that must be equal: tables, quarantines, manifests, records of shards."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for part in ("pool", "scores", "quarantine")
        for folder in (part, f"records/{part}")
        for path in sorted((store / folder).rglob("*"))
        if path.is_file()
    }


def repeated(store: Path) -> int:
    """Count the shards that were begun and not finished, from the event logs."""
    lines = [line for log in (store / "events").glob("*.jsonl") for line in log.open()]
    events = [json.loads(line) for line in lines]
    return sum(len(event.get("repeated", ())) for event in events)


def undisturbed(setting: Setting) -> Path:
    """Run both stages in one process, which starts Ray once."""
    from echostill.jobs.stages import run_stage
    from echostill.platform import runtime

    store = setting.folder / "calm"
    for stage in STAGES:
        run_stage(stage, str(setting.folder / "config.yaml"), [f"store={store}", "progress=false"])
    runtime.disconnect()
    return store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kinds", default=",".join(KINDS), help="what is killed, in turn")
    parser.add_argument("--node", action="store_true", help="also lose a node of a cluster")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--per-shard", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    kinds = [
        options.kinds.split(",")[k % len(options.kinds.split(","))] for k in range(options.kills)
    ]
    rng.shuffle(kinds)
    with tempfile.TemporaryDirectory(prefix="echostill-kills-") as folder:
        setting = Setting(Path(folder), options.images, options.per_shard)
        make_pool(setting, options.seed)
        configure(setting)
        rough, lost, tally = setting.folder / "rough", setting.folder / "lost", Tally()
        # What can run side by side does: much of it is waiting for processes to start.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            calm_run = pool.submit(undisturbed, setting)
            disturb("ingest", kinds[0::2], setting, rough, rng, tally)
            calm = calm_run.result()
        # The proxy is trained once: its own kills belong to training's tests.
        shutil.copytree(calm / "runs", rough / "runs")
        text = ""
        with ThreadPoolExecutor(1) as pool:
            nodes = None
            if options.node:  # started in the main thread, as Ray wants it
                left = shutil.ignore_patterns("score", "score.jsonl", "scores")
                shutil.copytree(calm, lost, ignore=left)
                nodes = Nodes(setting)
            rough_run = pool.submit(disturb, "score", kinds[1::2], setting, rough, rng, tally)
            if nodes is not None:
                text = nodes.lose_one(lost)
            rough_run.result()
        expected = contents(calm)
        differing, node_differing = (
            sorted(
                name
                for name in expected.keys() | found.keys()
                if expected.get(name) != found.get(name)
            )
            for found in (contents(rough), contents(lost) if options.node else expected)
        )
        count, node_count = repeated(rough), repeated(lost) if options.node else 0
    told = [line for line in text.splitlines() if "was lost" in line]
    passed = not differing and not tally.silent and count <= tally.allowed
    passed = passed and not node_differing and node_count <= WORKERS
    passed = passed and sum(tally.kills.values()) == options.kills
    result = {
        "machine": describe_machine(),
        "kills": dict(sorted(tally.kills.items())),
        "resumed": tally.resumed,
        "files_compared": len(expected),
        "files_differing": differing,
        "shards_repeated": count,
        "shards_repeated_allowed": tally.allowed,
        "node_lost": told,
        "node_files_differing": node_differing,
        "node_shards_repeated": node_count,
        "silent_ends": tally.silent,
        "passed": passed,
    }
    for name, value in result.items():
        print(f"{name:<24}{value}")
    if options.json:
        print(json.dumps(result))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
