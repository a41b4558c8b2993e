"""Pools on a cluster that scales from zero: they grow to their maximum, and the nodes go again.

Ray's `fake_multinode` provider starts a raylet on this machine for each node that its autoscaler
asks for. A part of chaos.py.
"""

import json
import subprocess
import time
from typing import Any

from hosts import GCS, HEAD, NET, NUMBERS, Hosts

NODES, CPUS = 3, 2  # of the cluster, at most, and of a node
HEAD_TYPE = "ray.head.default"  # the provider knows the head by this name alone
IDLE_MINUTES = 0.5
GONE_SECONDS = 240.0  # for idle nodes to be taken away
LOOK_SECONDS = 0.5
MOST = {"score": NODES * CPUS, "distill": 3}  # workers
KEYS = {
    "score": (f"workers=[1,{MOST['score']}]",),
    "distill": (
        f"training.workers=[1,{MOST['distill']}]",
        "training.resize_seconds=5",
        "training.threads=2",
    ),
}
# Ray Data asks for nodes every ten seconds, by the pace of shards it has seen: many, and not quick.
ROWS = 4  # images of a shard
SLOW = {"score": ("mask_draws=30",), "distill": ()}
TITLES = {"score": "ray::MapWorker", "distill": "ray::RayTrainWorker"}


def start(hosts: Hosts) -> None:
    """Start a head without CPUs, and an autoscaler that may add nodes."""
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray")
    content = {
        "cluster_name": "chaos",
        "max_workers": NODES,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 10,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,  # all nodes have the head's address
            "disable_node_updaters": True,  # they would log in to it, and take it for failed
            "disable_launch_config_check": True,
        },
        "auth": {},
        "docker": {},
        **{f"{name}_commands": [] for name in (*commands, "worker_start_ray")},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            HEAD_TYPE: {"resources": {}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": CPUS},
                "node_config": {},
                "min_workers": 0,
                "max_workers": NODES,
            },
        },
    }
    file = hosts.folder / "autoscaling.json"
    file.write_text(json.dumps(content))
    # With a token the provider's nodes take the cluster for another one.
    hosts.always = {"RAY_AUTH_MODE": "disabled", "RAY_FAKE_CLUSTER": "1"}
    hosts.start_node(
        HEAD,
        "--num-cpus=0",
        f"--autoscaling-config={file}",
        environment={"AUTOSCALER_UPDATE_INTERVAL_S": "1"},
    )
    hosts.await_node(HEAD)


def nodes(hosts: Hosts) -> int:
    """How many nodes the autoscaler has added."""
    titles = hosts.processes(HEAD).values()
    return sum(title.split(" ")[0].endswith("/raylet") for title in titles) - 1


def workers(hosts: Hosts, stage: str) -> int:
    """How many workers of a stage there are."""
    return sum(title.startswith(TITLES[stage]) for title in hosts.processes(HEAD).values())


def grow(hosts: Hosts, stage: str, command: list[str]) -> dict[str, Any]:
    """Run a stage from zero nodes; say how many came, when, and how long until they went."""
    before, begun = nodes(hosts), time.monotonic()
    process: subprocess.Popen[bytes] = hosts.on_head([*command, *KEYS[stage]], f"growing-{stage}")
    first: dict[int, float] = {}
    first_workers: dict[int, float] = {}
    while process.poll() is None:
        passed = round(time.monotonic() - begun, 1)
        first.setdefault(nodes(hosts), passed)
        first_workers.setdefault(workers(hosts, stage), passed)
        time.sleep(LOOK_SECONDS)
    took = round(time.monotonic() - begun, 1)
    while nodes(hosts) and time.monotonic() - begun < took + GONE_SECONDS:
        time.sleep(LOOK_SECONDS)
    return {
        "stage": stage,
        "address": f"{NET}.{NUMBERS[HEAD]}:{GCS}",
        "code": process.returncode,
        "nodes_before": before,
        "most_nodes": max(first),
        "most_workers": max(first_workers),
        "seconds_until_nodes": first,
        "seconds_until_workers": first_workers,
        "seconds": took,
        "nodes_after": nodes(hosts),
        "gone_after": round(time.monotonic() - begun - took, 1),
    }


def grew(result: dict[str, Any]) -> bool:
    """Whether a pool went from nothing to its maximum, and the nodes went again."""
    ends = result["code"], result["nodes_before"], result["nodes_after"]
    return ends == (0, 0, 0) and result["most_workers"] >= MOST[result["stage"]]
