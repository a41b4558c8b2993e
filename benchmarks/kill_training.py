"""Training that is killed at random points, against training that is left alone.

A distillation of micro models runs on a small Ray cluster of its own: a head and two nodes of one
CPU each, elastic from one worker to two. Drivers, workers and nodes are killed at random steps, and
the same command is given again where a driver died. At the end the stream of image ids must be that
of an undisturbed run, each image once per epoch, the logged losses must agree, and MLflow must show
one run.

    python benchmarks/kill_training.py --kills 10 --json
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from machine import describe_machine

STEPS, BATCH, IMAGES, SIDE, MOST = 60, 6, 20, 32, 2
KINDS = ("driver", "worker", "node")
HURRY = "hurry"  # a file, once nothing is waited for in a training
STEPS_ALONE = 3  # of one worker, until the node that was taken away is replaced


def make_job(folder, steps):
    """A job whose task writes down which images each step of each worker saw."""
    import torch

    from echostill.distill.objective.core import DistillationObjective
    from echostill.distill.objective.settings import ObjectiveSettings
    from echostill.distill.task import DistillationTask
    from echostill.platform.masking.masks import MaskSettings
    from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel
    from echostill.platform.models import create_encoder
    from echostill.platform.training.loop import TrainingSettings
    from echostill.platform.training.staging import StagedImages

    class Recorded(DistillationTask):
        stream = None

        def prepare(self, batches):
            if self.stream is not None:
                line = {
                    **self.stream,
                    "step": batches[0].step,
                    "ids": [i for b in batches for i in b.image_ids],
                    "epochs": [int(e) for b in batches for e in b.epochs],
                }
                with (folder / "stream.jsonl").open("a") as file:  # whole lines, appended
                    file.write(json.dumps(line) + "\n")
                if not (folder / HURRY).exists():
                    time.sleep(float(os.environ.get("ECHOSTILL_KILL_PACE", "0")))
            return super().prepare(batches)

    @dataclass(frozen=True)
    class Job:
        seed: int = 0
        settings: TrainingSettings = field(
            default_factory=lambda: TrainingSettings(
                steps=steps,
                batch_size=BATCH,
                learning_rate=0.02,
                checkpoints=max(steps // 6, 1),
                log_every=4,
                workers=(1, MOST),
                resize_seconds=2.0,
                threads=1,
            )
        )

        def build(self):
            random = np.random.default_rng(0)
            pixels = random.integers(0, 255, (IMAGES, 1, SIDE + 4, SIDE + 4), dtype=np.uint8)
            ids = [f"{row:032x}" for row in range(IMAGES)]
            task = self.task()
            task.stream = identity()
            return task, StagedImages(pixels, ids, ["liver"] * IMAGES, [""] * IMAGES)

        def task(self):
            torch.manual_seed(self.seed)
            teacher = create_encoder("usfm-micro", image_size=SIDE)
            student = create_encoder("tinyusfm-micro", image_size=SIDE)
            objective = DistillationObjective(
                MaskedImageModel(student, DecoderSettings()),
                teacher,
                ObjectiveSettings(preset="tinyusfm"),  # it has the most state to lose
            )
            masks = MaskSettings().scaled_to(SIDE, 16)
            return Recorded({"student": objective}, masks, self.seed)

        def on_checkpoint(self, weights, state):
            """Nothing besides."""

    return Job()


def identity():
    """Which attempt of the training this worker belongs to, and its place in it."""
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    try:
        context = ray.train.get_context()
        rank, size = context.get_world_rank(), context.get_world_size()
    except Exception:  # outside of Ray Train
        return {"attempt": 0, "rank": 0, "size": 1, "pid": os.getpid()}
    attempt = broadcast_from_rank_zero(time.time())
    return {"attempt": attempt, "rank": rank, "size": size, "pid": os.getpid()}


def drive(folder, steps):
    """Train on a cluster of this process's own; what a user's command does."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.25"
    os.environ.setdefault("RAY_health_check_period_ms", "500")
    import threading

    import ray
    from ray.cluster_utils import Cluster

    from echostill.platform.cluster.waiting import cluster_nodes
    from echostill.platform.progress import Progress
    from echostill.platform.tables.storage import Storage
    from echostill.platform.training.ray import plan, run_training
    from echostill.platform.training.tracking import Logged, Tracker

    storage = Storage(str(folder / "store" / "runs" / "killed"))
    job = make_job(folder, steps)
    tracker = Tracker.start(None, str(folder / "store"), storage, "killed", {"steps": steps})
    small = {"object_store_memory": 80 * 2**20}
    head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder / "ray"), **small}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    failed = []

    def train():
        try:
            with Progress("train", steps, enabled=False) as bar:
                where = plan(job.settings, cluster_nodes())
                run = run_training(job, storage, "0" * 64, [Logged(list, tracker)], bar, where)
            tracker.finish()
            (folder / "history.json").write_text(json.dumps(run.history))
        except Exception as error:  # told by the main thread
            failed.append(error)

    # Nodes can only be started in the main thread.
    thread = threading.Thread(target=train)
    thread.start()
    order = folder / "kill-node"
    while thread.is_alive():
        if order.exists() and len(nodes) == 2:
            order.unlink()
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            (folder / "node-killed").touch()
        if len(nodes) == 1 and alone_for(folder) >= STEPS_ALONE:
            nodes.append(cluster.add_node(num_cpus=1, **small))
        time.sleep(0.1)
    ray.shutdown()
    cluster.shutdown()
    if failed:
        raise failed[0]


def undisturbed(folder, steps):
    """The same job in this process, without Ray: its stream and its history."""
    from echostill.platform.training.collective import TrainingWorker
    from echostill.platform.training.loop import TrainingState, train

    job = make_job(folder, steps)
    task, images = job.build()
    task.stream = {"attempt": 0, "rank": 0, "size": 1, "pid": os.getpid()}
    alone = TrainingWorker()
    state = train(
        task, task, images, job.settings, job.seed, TrainingState(), alone, lambda _: None
    )
    return state.history


def records(folder):
    """Lines of the stream that are whole; a killed writer may leave half a line."""
    found = []
    path = folder / "stream.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def newest(folder):
    """The lines of the newest attempt."""
    lines = records(folder)
    last = max((line["attempt"] for line in lines), default=None)
    return [line for line in lines if line["attempt"] == last]


def whole_again(folder, since):
    """Whether an attempt of all workers has begun since then."""
    return any(line["size"] == MOST and line["attempt"] > since for line in newest(folder))


def alone_for(folder):
    """Steps of the newest attempt, where it is one worker alone."""
    return sum(line["size"] == 1 for line in newest(folder))


def effective_stream(lines, steps):
    """The (id, epoch) of each step, as the last attempt saw it that came to the step."""
    stream = []
    for step in range(steps):
        here = [line for line in lines if line["step"] == step]
        if not here:
            return stream
        last = max(line["attempt"] for line in here)
        shares = {line["rank"]: line for line in here if line["attempt"] == last}
        size = next(iter(shares.values()))["size"]
        assert sorted(shares) == list(range(size)), f"step {step} misses a worker: {shares}"
        whole = [None] * BATCH
        for rank, line in shares.items():
            whole[rank::size] = list(zip(line["ids"], line["epochs"], strict=True))
        stream.append(whole)
    return stream


def descendants(pid):
    """Processes that a process started, and those that they started."""
    children = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Driver:
    """A driver process, which is started again until the training ends."""

    def __init__(self, folder, steps, pace):
        self.folder, self.steps, self.pace, self.starts = folder, steps, pace, 0
        self.process = None

    def start(self):
        self.starts += 1
        command = [
            sys.executable,
            __file__,
            "--drive",
            str(self.folder),
            "--steps",
            str(self.steps),
        ]
        environment = {**os.environ, "ECHOSTILL_KILL_PACE": str(self.pace)}
        environment.pop("RAY_ADDRESS", None)
        log = (self.folder / f"driver-{self.starts}.log").open("w")
        self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def is_done(self):
        """Start the driver where none runs; true once it ended well."""
        if self.process is None or self.process.poll() not in (None, 0):
            self.start()
        return self.process.poll() == 0

    def end(self):
        """Kill the driver with everything it started."""
        below = descendants(self.process.pid)
        kill(self.process.pid)
        self.process.wait()
        for pid in below:
            kill(pid)


def disturb(driver, kind, step):
    """Wait until some attempt has come to a step, then kill. Returns whether it was in time."""
    folder = driver.folder
    while True:
        if driver.is_done():
            return False
        alive = [line for line in newest(folder) if Path(f"/proc/{line['pid']}").exists()]
        if alive and max(line["step"] for line in alive) >= step:
            break
        time.sleep(0.1)
    print(f"  step {step}: {kind} killed", flush=True)
    if kind == "driver":
        driver.end()
    elif kind == "worker":
        kill(alive[-1]["pid"])
    else:
        (folder / "node-killed").unlink(missing_ok=True)
        (folder / "kill-node").touch()
        while not (folder / "node-killed").exists() and not driver.is_done():
            time.sleep(0.1)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--kinds", default=",".join(KINDS), help="what is killed, in turn")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--pace", type=float, default=0.4, help="Seconds to wait in each step.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options.drive, options.steps)
        return
    print(f"{describe_machine()}", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-") as temporary:
        result = run(Path(temporary), options)
    result["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))
    sys.exit(0 if result["stream_equal"] and result["loss_difference"] < 1e-4 else 1)


def run(folder, options):
    random = np.random.default_rng(options.seed)
    calm, rough = folder / "calm", folder / "rough"
    calm.mkdir()
    rough.mkdir()
    expected = undisturbed(calm, options.steps)
    stream = effective_stream(records(calm), options.steps)
    kinds = options.kinds.split(",")
    steps = np.sort(random.integers(1, options.steps - 4, options.kills))
    driver = Driver(rough, options.steps, options.pace)
    killed = []
    try:
        for place, step in enumerate(steps):
            kind = kinds[place % len(kinds)]
            if disturb(driver, kind, int(step)):
                killed.append(kind)
        since = time.time()
        while not driver.is_done():
            if whole_again(rough, since):
                (rough / HURRY).touch()
            time.sleep(0.3)
    finally:
        if driver.process is not None and driver.process.poll() is None:
            driver.end()
    lines = records(rough)
    got = effective_stream(lines, options.steps)
    history = json.loads((rough / "history.json").read_text())
    names = set(expected[-1])
    difference = max(
        abs(one["loss"] - other["loss"]) / abs(one["loss"])
        for one, other in zip(expected, history, strict=True)
    )
    flat = [pair for batch in got for pair in batch]
    whole = len(flat) // IMAGES * IMAGES
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{rough / 'store' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("echostill")
    return {
        "kills": killed,
        "driver_starts": driver.starts,
        "attempts": len({line["attempt"] for line in lines}),
        "workers": [
            size for _, size in sorted({(line["attempt"], line["size"]) for line in lines})
        ],
        "first_steps": [
            min(line["step"] for line in lines if line["attempt"] == attempt)
            for attempt in sorted({line["attempt"] for line in lines})
        ],
        "stream_equal": got == stream and set(history[-1]) == names,
        "once_per_epoch": len(set(flat[:whole])) == whole,
        "loss_difference": difference,
        "final_loss_difference": abs(history[-1]["loss"] - expected[-1]["loss"]),
        "mlflow_runs": len(client.search_runs([experiment.experiment_id])),
        "repeated_steps": len({(line["attempt"], line["step"]) for line in lines}) - options.steps,
    }


if __name__ == "__main__":
    main()
