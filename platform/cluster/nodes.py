"""The nodes of a cluster, and how many equal workers they hold. No Ray in here.

Ray places a worker on one node, whole: 5 CPUs on nodes of 1, 2 and 2 hold no worker of 5. Of a GPU
it gives whole ones, or equal parts of a single one. Workers of a plan are all alike, so a node's
share of them does not depend on the other nodes, and every way of placing them ends the same way:
as many fit as the nodes hold together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STEPS = 100  # a plan counts CPUs in hundredths
RESOLUTION = 10_000  # Ray counts resources in ten-thousandths


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: its CPUs and GPUs, as Ray counts them."""

    cpus: float
    gpus: float = 0.0

    def holds(self, cpus: float, gpus: float = 0.0) -> int:
        """How many workers of so many CPUs (more than 0) and GPUs fit."""
        fitting = steps(self.cpus) // steps(cpus)
        if gpus:
            whole = int(self.gpus)
            parts = whole // int(gpus) if gpus >= 1 else whole * int(1 / gpus)
            fitting = min(fitting, parts)
        return fitting


Nodes = Sequence[Node]


def steps(cpus: float) -> int:
    """CPUs in whole hundredths."""
    return int(cpus * STEPS + 1e-6)


def part_of_gpu(workers: int) -> float:
    """The part of a GPU that so many workers get each, as Ray counts it: never more than there is.

    Args:
        workers: That share one GPU, up to a hundred.
    """
    return RESOLUTION // workers / RESOLUTION


def capacity(nodes: Nodes, cpus: float, gpus: float = 0.0) -> int:
    """How many workers of so many CPUs and GPUs the nodes hold together."""
    return sum(node.holds(cpus, gpus) for node in nodes)


def keeps_free(nodes: Nodes, workers: int, cpus: float, gpus: float, room: float) -> bool:
    """Whether some node has ``room`` CPUs left wherever Ray puts the workers.

    The worst case fills up one node after the other just so far that it has less left.
    """
    fillers = 0
    for node in nodes:
        spare = steps(node.cpus) - steps(room)
        if spare < 0:
            continue
        enough = spare // steps(cpus) + 1
        if enough > node.holds(cpus, gpus):
            return True  # it cannot be filled up so far
        fillers += enough
    return fillers > workers


def packed(nodes: Nodes, workers: int, cpus: float, gpus: float = 0.0) -> list[float]:
    """CPUs that are left on each node when the workers are placed on the nodes in turn."""
    left = []
    for node in nodes:
        here = min(node.holds(cpus, gpus), workers)
        workers -= here
        left.append((steps(node.cpus) - here * steps(cpus)) / STEPS)
    return left


def total(nodes: Iterable[Node]) -> tuple[float, float]:
    """CPUs and GPUs of all nodes."""
    nodes = list(nodes)
    return sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)


def describe(nodes: Nodes) -> str:
    """Say in words what there is: ``2 nodes of 2 CPUs, 1 node of 8 CPUs and 2 GPUs``."""
    counts: dict[str, int] = {}
    for node in nodes:
        gpus = f" and {node.gpus:g} GPU{'s' * (node.gpus != 1)}" if node.gpus else ""
        kind = f"{node.cpus:g} CPU{'s' * (node.cpus != 1)}{gpus}"
        counts[kind] = counts.get(kind, 0) + 1
    said = [f"{count} node{'s' * (count > 1)} of {kind}" for kind, count in counts.items()]
    return ", ".join(said) or "no nodes"
