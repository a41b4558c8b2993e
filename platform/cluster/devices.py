"""Whether torch can use the GPUs that Ray counts, asked before any worker starts.

Ray counts what the system lists or what `--num-gpus` says. A torch without CUDA, or with a driver
that is too old, sees none of them: training would fail in NCCL, and scoring would reserve GPUs and
compute on CPUs.
"""

import os
import subprocess
import sys
import threading
from typing import Any

from echostill.platform.errors import EchostillError

# Version of torch, GPUs it sees, and how many of them have units for bfloat16 (since Ampere).
LOOK = """import torch
gpus = range(torch.cuda.device_count())
fits = sum(torch.cuda.get_device_capability(gpu) >= (8, 0) for gpu in gpus)
print(torch.__version__, len(gpus), fits)"""
SECONDS = 120.0  # for all nodes to answer; one that is too busy for that is taken at its word

_lock = threading.Lock()
_usable: dict[str, bool] = {}  # nodes that were asked, by their ids: whether all have bfloat16


def check_gpus() -> None:
    """Ask every node that has GPUs whether torch sees any there; each node once in a process.

    No GPU is reserved for it, since other runs may hold all.

    Raises:
        EchostillError: torch on a node sees no GPU.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with _lock:
        asked: dict[Any, dict[str, Any]] = {}
        for node in ray.nodes():
            if not node["Alive"] or not node["Resources"].get("GPU") or node["NodeID"] in _usable:
                continue
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_look)
            asked[task.remote()] = node
        if not asked:
            return
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS)
        for answer in answered:
            node = asked[answer]
            version, gpus, bfloat16 = _read(ray.get(answer))
            if not gpus:
                raise EchostillError(
                    f"Ray counts {node['Resources']['GPU']:g} GPU(s) on node "
                    f"{node['NodeManagerAddress']}, but torch {version} there sees none: install a "
                    "torch that fits the node's driver, correct --num-gpus, or use compute_on=cpu."
                )
            _usable[node["NodeID"]] = bfloat16 == gpus


def gpus_have_bfloat16() -> bool:
    """Return whether all GPUs of the nodes that :func:`check_gpus` has asked have bfloat16."""
    return all(_usable.values())


def _look() -> str:
    # In a process of its own: Ray hides GPUs from a task that reserves none, and a look from here
    # would leave a CUDA context in a worker that others use again.
    environment = dict(os.environ)
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, text=True, env=environment, check=False
    )
    return done.stdout


def _read(text: str) -> tuple[str, int, int]:
    """Read what :data:`LOOK` printed; nothing where torch could not start."""
    version, gpus, bfloat16 = text.split() or ("", 0, 0)
    return version, int(gpus), int(bfloat16)


def compute_device() -> str:
    """Return the device to compute on, ``cuda`` or ``cpu``.

    In a Ray worker ``cuda`` only where Ray gave it a GPU: others on the node belong to others.
    Elsewhere where there is one.

    Raises:
        EchostillError: Ray gave a GPU, and torch sees none.
    """
    import torch

    ray = sys.modules.get("ray")
    seen = torch.cuda.is_available()
    if ray is None or not ray.is_initialized():
        return "cuda" if seen else "cpu"
    context = ray.get_runtime_context()
    if context.get_task_id() is None:  # the driver
        return "cuda" if seen else "cpu"
    given = context.get_accelerator_ids().get("GPU", [])
    if given and not seen:
        raise EchostillError(
            f"Ray gave this worker GPU {', '.join(given)}, but torch {torch.__version__} sees "
            "none: install a torch that fits the node's driver, or use compute_on=cpu."
        )
    return "cuda" if given else "cpu"
