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
from echostill.platform.cluster.plans import plan_replicas, plan_workers
from echostill.platform.config import ComputeConfig
from echostill.platform.errors import EchostillError

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
cluster.add_node(num_cpus=1, **small)
waiter.join()
cluster.add_node(num_cpus=2, num_gpus=2, **small)
nodes = waiting.cluster_nodes()
said["nodes"] = sorted([node.cpus, node.gpus] for node in nodes)
said["training"] = ask(0, partial(plan_replicas, 1, 1, device="cpu"))
said["gpus"] = ask(0, partial(plan_workers, None, 9, device="auto"))
said["unplaced"] = []
for workers in range(1, 10):
    for device in ("auto", "cpu"):
        plan = plan_workers(workers, workers, nodes, device=device)
        bundle = {"CPU": plan.cpus_per_worker, "GPU": plan.gpus_per_worker}
        group = placement_group([{k: v for k, v in bundle.items() if v}] * workers)
        if not group.wait(timeout_seconds=30):
            said["unplaced"].append([workers, device])
        remove_placement_group(group)
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
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
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
