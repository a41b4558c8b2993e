"""The pipeline on three nodes, and what each failure there costs.

A head with 1 CPU and two workers with 2 each, hosts with addresses of their own on this machine
(hosts.py): token authentication, the store on an S3 server, an MLflow server over the network.
`echostill run` must end there with the coreset of a single machine, byte for byte. Then each stage
is disturbed: a node is killed and comes back, the head dies, the network parts, the object store is
slow. Each must end with the undisturbed tables, losses and results, and repeat at most one shard
per worker. With --only no more is run undisturbed than is needed, and not on one machine.

    python benchmarks/chaos.py --json
    python benchmarks/chaos.py --only "node killed in score" --json

Needs root; nothing outside of its own namespaces is touched.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from autoscaling import ROWS, SLOW, grew, grow
from autoscaling import start as start_autoscaling
from hosts import BUCKET, HEAD, Hosts, inside
from machine import describe_machine
from small_quickstart import configure
from stores import copy, differing, events, files, repeated, seconds

from echostill.platform.stages import IN_RUN

SIZES = {HEAD: 1, "first": 2, "second": 2}  # CPUs
WORKERS = tuple(host for host in SIZES if host != HEAD)
DOWN_SECONDS = 20.0  # until a node that was killed comes back
PART_SECONDS = 60.0
DELAY_SECONDS = 0.2  # of each packet that the slow object store answers
HANG_SECONDS = 1200.0
CALM = "calm"  # the undisturbed store
ECHOSTILL = (sys.executable, "-m", "echostill.jobs.cli.main")
POOL = ("pool/", "records/pool/", "quarantine/ingest/", "records/quarantine/ingest/")
SCORES = ("scores/", "records/scores/", "quarantine/score/", "records/quarantine/score/")
CORESET = (*POOL, *SCORES, "duplicates/", "coresets/", "records/duplicates/", "records/coresets/")
# What of the undisturbed store a stage finds; what it makes, of which every byte must be equal;
# and how far it must have come before it is disturbed: the folder where its files gather.
FOUND = {
    "ingest": (),
    "score": (*POOL, "runs/proxy/"),
    "distill": (*CORESET, "runs/proxy/"),
    "evaluate": (*CORESET, "runs/"),
}
MADE = {
    "ingest": POOL,
    "score": SCORES,
    "select": ("coresets/",),
    "distill": ("runs/distilled-0/metrics.jsonl", "runs/distilled-0/model.safetensors"),
    "evaluate": ("reports/default/units/",),
}
BEGUN = {
    "ingest": "records/pool/done/",
    "score": "records/scores/done/",
    "distill": "runs/distilled-0/train/",
    "evaluate": "reports/default/units/",
}
# Of a training its second checkpoint: of the first one Ray Train may not know yet.
CHECKPOINT, CHECKPOINTS = "checkpoint_", 2
LOST = "was lost: "  # in a line of a stage's log
WORKING = ("ray::MapWorker", "ray::RayTrainWorker", "ray::_compute", "ray::_Worker")


@dataclass
class Cluster:
    """The cluster, and its undisturbed run."""

    hosts: Hosts
    config: Path
    calm: dict[str, float] = field(default_factory=dict)  # seconds of each stage

    def start(self) -> None:
        """Start the nodes, and wait until they are there."""
        self.hosts.start_node(HEAD, f"--num-cpus={SIZES[HEAD]}")
        self.hosts.await_node(HEAD)
        for host in WORKERS:
            self.hosts.start_node(host, f"--num-cpus={SIZES[host]}")
        for host in WORKERS:
            self.hosts.await_node(host)

    def restart(self) -> None:
        """Start the cluster again, after its head died: what is left of it ends first."""
        for host in SIZES:
            self.hosts.kill(host)
        self.start()

    def mend(self) -> None:
        """Start the nodes that ended, and wait until all are there again."""
        for host in WORKERS:
            if self.hosts.node_ended(host):
                self.hosts.kill(host)
                self.hosts.start_node(host)
            self.hosts.await_node(host)

    def command(self, stage: str, store: str) -> list[str]:
        """Return the command of a stage, as it is given on the head."""
        keys = [f"store={uri(store)}", f"tracking={self.hosts.tracking}"]
        return [*ECHOSTILL, stage, "--config", str(self.config), *keys]


def uri(store: str) -> str:
    return f"s3://{BUCKET}/{store}"


def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for a command to end; one that hangs is a failure."""
    try:
        return process.wait(HANG_SECONDS)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"FAILED: {process.args} hangs") from None


def busy(hosts: Hosts) -> str | None:
    """Return the worker host on which most of a stage's processes compute, if there is one."""
    counts = {
        host: sum(title.startswith(WORKING) for title in hosts.processes(host).values())
        for host in WORKERS
    }
    best = max(counts, key=lambda host: counts[host])
    return best if counts[best] else None


def kill_node(hosts: Hosts, host: str) -> None:
    """Kill a worker node, which comes back."""
    hosts.kill(host)
    time.sleep(DOWN_SECONDS)
    hosts.start_node(host)


def lose_node(hosts: Hosts, host: str) -> None:
    """Kill a worker node, which comes back only after the stage has ended."""
    hosts.kill(host)


def part_network(hosts: Hosts, host: str) -> None:
    """Cut a worker node off for a while. Ray takes it for dead: its supervisor starts it again."""
    hosts.part(host, True)
    time.sleep(PART_SECONDS)
    hosts.part(host, False)
    until = time.monotonic() + PART_SECONDS
    while not hosts.node_ended(host) and time.monotonic() < until:
        time.sleep(0.5)
    if hosts.node_ended(host):
        hosts.kill(host)
        hosts.start_node(host)


def slow_store(hosts: Hosts, host: str) -> None:
    """Let the object store be slow, to the end of the stage."""
    hosts.delay(DELAY_SECONDS)


def kill_head(hosts: Hosts, host: str) -> None:
    """Kill the head: everything that runs there, the driver too."""
    hosts.kill(HEAD)


TROUBLES: dict[str, tuple[str, Callable[[Hosts, str], None]]] = {
    **{f"node killed in {stage}": (stage, kill_node) for stage in BEGUN},
    "node lost in score": ("score", lose_node),
    "head killed in score": ("score", kill_head),
    "network parted in score": ("score", part_network),
    "network parted in distill": ("distill", part_network),
    "object store slow in score": ("score", slow_store),
}


def await_begun(cluster: Cluster, store: str, stage: str, process: Any) -> str:
    """Wait until a stage has finished something and computes on a worker node; return which."""
    seen: set[str] = set()
    while process.poll() is None:
        found = files(store, [BEGUN[stage]])
        if stage == "distill":
            found = [part for name in found for part in name.split("/") if CHECKPOINT in part]
        seen |= set(found)
        gathered = len(seen) >= (CHECKPOINTS if stage == "distill" else 1)
        if gathered and (host := busy(cluster.hosts)) is not None:
            return host
        time.sleep(0.2)
    raise SystemExit(f"FAILED: {stage} ended before it was disturbed; see {cluster.hosts.folder}")


def said_lost(log: Path, process: Any) -> float | None:
    """Wait until a stage says that a node was lost; return when, None where it never does."""
    while process.poll() is None:
        if LOST in log.read_text():
            return time.monotonic()
        time.sleep(0.2)
    return None


def disturb(cluster: Cluster, name: str) -> dict[str, Any]:
    """Disturb a stage, and compare its end with that of the undisturbed run."""
    stage, trouble = TROUBLES[name]
    hosts, store = cluster.hosts, uri(name.replace(" ", "-"))
    copy(uri(CALM), store, FOUND[stage])
    log = store.rpartition("/")[2]
    submitted = trouble is kill_head  # a driver on the head could not say how it ended
    command = cluster.command(stage, log)
    if submitted:
        (hosts.folder / "job").mkdir(exist_ok=True)
        where = ["--address", hosts.dashboard, "--working-dir", str(hosts.folder / "job")]
        command = [*ECHOSTILL, "submit", stage, *where, *command[len(ECHOSTILL) + 1 :]]
    process = hosts.here(command, log) if submitted else hosts.on_head(command, log)
    host = await_begun(cluster, store, stage, process)
    begun = time.monotonic()
    with ThreadPoolExecutor(1) as beside:
        told = beside.submit(said_lost, hosts.folder / f"{log}.log", process)
        trouble(hosts, host)
        codes = [ended(process)]
    noticed = round(time.monotonic() - begun, 1)
    if submitted:
        cluster.restart()
        process = hosts.here(command, log)
        codes.append(ended(process))
    hosts.delay(0)
    made = differing(uri(CALM), store, MADE[stage])
    result = {
        "trouble": name,
        "codes": codes,
        "seconds": seconds(store, stage),
        "undisturbed": cluster.calm[stage],
        "repeated": repeated(store, stage),
        "differing": made,
        **({"noticed": noticed} if submitted else {}),
        **({"said_lost_after": round(told.result() - begun, 1)} if told.result() else {}),
    }
    result["cost"] = round(result["seconds"] - result["undisturbed"], 1)
    cluster.mend()
    return result


def same(cluster: Cluster) -> dict[str, Any]:
    """Run the pipeline on the cluster and on this machine alone, and compare the coresets."""
    command = cluster.command("run", CALM)
    begun = time.time()
    if ended(cluster.hosts.on_head(command, CALM)) != 0:
        raise SystemExit(f"FAILED: the undisturbed run; see {cluster.hosts.folder}/{CALM}.log")
    cluster.calm |= {stage: seconds(uri(CALM), stage) for stage in MADE}
    planned = [event for event in events(uri(CALM), "ingest") if event["event"] == "planned"]
    started = datetime.fromisoformat(planned[0]["time"]).timestamp() - begun
    alone = str(cluster.hosts.folder / "alone")
    command = [*ECHOSTILL, "run", "--config", str(cluster.config), f"store={alone}"]
    if ended(cluster.hosts.here(command, "alone")) != 0:
        raise SystemExit(f"FAILED: the run on one machine; see {cluster.hosts.folder}/alone.log")
    shards = (*POOL, *SCORES, *MADE["select"])
    return {
        "first_shards_planned_after": round(started, 1),
        "stages": cluster.calm,
        "files_compared": len(files(alone, shards)),
        "differing": differing(uri(CALM), alone, shards),
        "losses_differing": differing(uri(CALM), alone, MADE["distill"]),
    }


def calm(cluster: Cluster, stages: set[str]) -> None:
    """Run the stages on the cluster, undisturbed, up to the last that is to be disturbed."""
    last = max(IN_RUN.index(stage) for stage in stages)
    for stage in IN_RUN[: last + 1]:
        if ended(cluster.hosts.on_head(cluster.command(stage, CALM), CALM)) != 0:
            raise SystemExit(f"FAILED: {stage}, undisturbed; see {cluster.hosts.folder}/{CALM}.log")
    cluster.calm |= {stage: seconds(uri(CALM), stage) for stage in stages}


def growing(folder: Path, config: Path) -> list[dict[str, Any]]:
    """Let pools grow from zero nodes, in scoring and in training; nothing else of Ray's runs."""
    hosts = Hosts(folder)
    os.environ |= hosts.environment()
    store = str(folder / "alone")
    keys = ["--config", str(config), f"store={store}"]
    for stage in ("ingest", "score", "select"):
        if ended(hosts.here([*ECHOSTILL, stage, *keys, *SLOW.get(stage, ())], "alone")) != 0:
            raise SystemExit(f"FAILED: {stage} on one machine; see {folder}/alone.log")
    start_autoscaling(hosts)
    found = []
    for stage in ("score", "distill"):
        target = str(folder / f"growing-{stage}")
        copy(store, target, FOUND[stage])
        command = [*ECHOSTILL, stage, "--config", str(config), f"store={target}", *SLOW[stage]]
        found.append(grow(hosts, stage, command))
        print(json.dumps(found[-1]), flush=True)
    found[0]["differing"] = differing(store, str(folder / "growing-score"), MADE["score"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(TROUBLES), help="what is done")
    parser.add_argument("--autoscaling", action="store_true", help="pools that grow, and no more")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--rows", type=int, default=10, help="images of a shard")
    parser.add_argument("--steps", type=int, default=120, help="of the distillation")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    inside()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    rows = ROWS if options.autoscaling else options.rows
    config = configure(folder, options.images, rows, options.steps)
    print(describe_machine(), flush=True)
    if options.autoscaling:
        grown = growing(folder, config)
        sys.exit(0 if all(map(grew, grown)) and not grown[0]["differing"] else 1)
    hosts = Hosts(folder)
    os.environ |= hosts.environment()
    cluster = Cluster(hosts, config)
    hosts.start_services()
    cluster.start()
    report: dict[str, Any] = {"machine": describe_machine(), "troubles": []}
    if options.only:
        calm(cluster, {TROUBLES[name][0] for name in options.only})
    else:
        report["same"] = same(cluster)
        print(json.dumps(report["same"]), flush=True)
    for name in options.only or TROUBLES:
        report["troubles"].append(disturb(cluster, name))
        print(row(report["troubles"][-1]), flush=True)
    if not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    equal = not report.get("same", {}).get("differing")
    passed = equal and all(map(survived, report["troubles"]))
    print(json.dumps(report) if options.json else f"passed: {passed}")
    sys.exit(0 if passed else 1)


def survived(result: dict[str, Any]) -> bool:
    """Whether a disturbed stage ended as the undisturbed one did."""
    return (
        result["codes"][-1] == 0
        and not result["differing"]
        and result["repeated"] <= sum(SIZES.values()) * 2
    )


def row(result: dict[str, Any]) -> str:
    """Return a row of the table."""
    equal = f"{len(result['differing'])} files differ" if result["differing"] else "equal"
    return (
        f"| {result['trouble']} | {result['undisturbed']:.0f} s | {result['seconds']:.0f} s | "
        f"{result['repeated']} | {equal} | {result['codes']} |"
    )


if __name__ == "__main__":
    main()
