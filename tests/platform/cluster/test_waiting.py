"""A cluster of several nodes on this machine: plans that Ray places, and nodes that come later."""

import json
import os
import subprocess
import sys

import pytest
import torch

from echostill.platform import runtime
from echostill.platform.cluster import waiting
from echostill.platform.cluster.nodes import Node
from echostill.platform.cluster.plans import plan_workers
from echostill.platform.config import ComputeConfig
from echostill.platform.errors import UsageError

# In a process of its own: the session's Ray is one node, and a process has one Ray.
SEVERAL_NODES = """
import json, sys, threading
from functools import partial
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group
from echostill.platform import runtime
from echostill.platform.cluster import waiting
from echostill.platform.cluster.nodes import Node
from echostill.platform.cluster.plans import gpus_for, plan_replicas, plan_workers
from echostill.platform.config import ComputeConfig
from echostill.platform.errors import EchostillError, UsageError

small = {"object_store_memory": 80 * 2**20}
head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": sys.argv[1], **small}
cluster = Cluster(initialize_head=True, head_node_args=head)
said = {}

def ask(seconds, make):
    config = ComputeConfig(address=cluster.address, wait_for_nodes=seconds)
    try:
        return waiting.plan_on_cluster(config, make).describe()
    except EchostillError as error:
        return f"{type(error).__name__}: {error}"

pool = partial(plan_workers, None, 9)
said["never"] = ask(1, pool)
waiter = threading.Thread(target=lambda: said.update(joined=ask(120, pool)))
waiter.start()
# All nodes are there in the end; a plan for some is placed on them alone, by a resource of theirs,
# whose name may have no comma and no space: the raylet gets it on its command line.
CLUSTERS = {
    "8": [(10, 8)],
    "8-2-0": [(10, 8), (2, 2), (1, 0)],
    "1": [(3, 1)],
}

def add(cpus, gpus, wait=True):
    marks = {f"in-{name}": 1000 for name, sizes in CLUSTERS.items() if (cpus, gpus) in sizes}
    cluster.add_node(wait, num_cpus=cpus, num_gpus=gpus, resources=marks, **small)

add(1, 0)
waiter.join()
add(2, 2)
nodes = waiting.cluster_nodes()
said["nodes"] = sorted([node.cpus, node.gpus] for node in nodes)
said["training"] = ask(0, partial(plan_replicas, 1, 1, device="cpu"))
said["gpus"] = ask(0, partial(plan_workers, None, 9, device="auto"))
add(10, 8, wait=False)
add(3, 1)
cluster.wait_for_nodes()

def place(name, cpus, gpus, beside, count):
    bundle = {"CPU": cpus, f"in-{name}": 0.001, **({"GPU": gpus} if gpus else {})}
    groups = [placement_group([bundle] * count)]
    placed = groups[0].wait(timeout_seconds=30)
    if placed and beside:
        groups.append(placement_group([{"CPU": 1, f"in-{name}": 0.001}]))
        placed = groups[1].wait(timeout_seconds=30)
    for group in groups:
        remove_placement_group(group)
    return placed

planned, wanted, refused = 0, {}, {}
for name, sizes in CLUSTERS.items():
    nodes = [Node(0), *(Node(*size) for size in sizes)]
    for count in range(1, 10):
        for device in ("auto", "cpu"):
            asked = partial(plan_workers, units=count, nodes=nodes, device=device)
            stages = {  # as they ask for their workers; ingest has no GPUs
                "score": partial(asked, None, decoders=None),
                "score with so many workers": partial(asked, count, decoders=None),
                "score with a pool that grows": partial(asked, (1, count), decoders=None),
                "evaluate and cache": partial(asked, count),
                "ingest": partial(plan_workers, None, count, nodes),
                "training": partial(plan_replicas, count, count, nodes, device=device),
                "elastic training": partial(plan_replicas, 1, count, nodes, device=device),
                "training by default": lambda: plan_replicas(
                    *[gpus_for(1, count, nodes, device)] * 2, nodes, device=device
                ),
            }
            for stage, make in stages.items():
                what = f"{stage}: {count} on {name} ({device})"
                try:
                    plan = make()
                except UsageError as error:
                    refused[what] = str(error)
                    continue
                # An elastic training starts with as many as there are places for.
                together = 1 if stage == "elastic training" else plan.workers
                planned += 1
                shape = name, plan.cpus_per_worker, plan.gpus_per_worker, plan.decoders > 0
                # Where many are placed, fewer of the same kind are.
                wanted[shape] = max(wanted.get(shape, (0, "")), (together, what))
said["planned"], said["refused"] = planned, refused
said["unplaced"] = [
    what for shape, (count, what) in wanted.items() if not place(*shape, count)
]
print(json.dumps(said))
runtime.disconnect()
cluster.shutdown()
"""


@pytest.mark.ray
def test_plans_are_placed_on_several_nodes_and_wait_for_the_first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("r", numbered=True)
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL_NODES, str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
        env={
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "RAY_prestart_worker_first_driver": "0",  # they would only take time
        },
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["never"].startswith(
        "EchostillError: no node came in 1 s for room for 1 worker(s) of 1 CPU: "
    )
    assert "waiting for room for 1 worker(s) of 1 CPU" in done.stderr
    assert said["joined"] == "1 worker(s) x 0.5 CPU, 1 thread(s) each"
    assert said["nodes"] == [[0, 0], [1, 0], [2, 2]]
    assert said["training"] == "1 worker(s) x 2 CPU, 2 thread(s) each"
    if not torch.cuda.is_available():  # GPUs that Ray counts and torch cannot use
        assert said["gpus"].startswith("EchostillError: Ray counts 2 GPU(s) on node ")
        assert "sees none" in said["gpus"]
    assert said["unplaced"] == []
    assert said["planned"] + len(said["refused"]) == 3 * 9 * 2 * 8
    assert all("compute_on=cpu" in text for text in said["refused"].values())
    # Trainings are refused where their workers find no GPU each; of pools, none.
    assert sorted(said["refused"]) == sorted(
        f"training: {count} on {name} (auto)"
        for name, gpus in {"8": 8, "8-2-0": 10, "1": 1}.items()
        for count in range(gpus + 1, 10)
    )


def test_a_dry_run_without_an_address_refuses_what_this_machine_has_not(monkeypatch):
    monkeypatch.setattr(waiting, "local_nodes", lambda: [Node(2)])
    config = ComputeConfig(compute_on="gpu")
    with pytest.raises(UsageError, match="compute_on is gpu, and there is none: 1 node of 2 CPUs"):
        waiting.describe_plan(
            config, lambda nodes: plan_workers(None, 9, nodes, device=config.compute_on)
        )


def test_a_dry_run_with_an_address_says_what_the_stage_would_wait_for(monkeypatch):
    monkeypatch.setattr(runtime, "connect_ray", lambda address: None)
    monkeypatch.setattr(waiting, "cluster_nodes", lambda: [Node(0)])
    config = ComputeConfig(address="cluster:6379")
    words = waiting.describe_plan(config, lambda nodes: plan_workers(None, 9, nodes))
    assert words.startswith(
        "waits up to 600 s for room for 1 worker(s) of 1 CPU: no node has a CPU"
    )
