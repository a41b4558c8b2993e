"""The nodes of a cluster while a stage runs on it: which there are, and which are lost.

Ray says of a lost node what its own log ended with, dozens of lines. A run says it in a sentence.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from echostill.platform import runtime
from echostill.platform.cluster.nodes import Node, describe
from echostill.platform.progress import console

LOOK_SECONDS = 2.0  # between looks at the nodes

_lock = threading.Lock()
_watched: list["NodeWatch"] = []


def watch_nodes() -> None:
    """Say which nodes the connected cluster has, once, and from now on which are lost and come.

    A Ray that this process has started is one node, and looked after elsewhere; a worker on a
    cluster leaves it to its driver.
    """
    import ray

    if runtime.is_local() or ray.get_runtime_context().get_task_id() is not None:
        return
    with _lock:
        if _watched and _watched[0].lives:
            return
        watch = NodeWatch(ray.nodes, _say)
        _watched[:] = [watch]
    _say(f"on a Ray cluster of {watch.described}")
    watch.start(ray.is_initialized)


class NodeWatch:
    """Compares the nodes with those of before."""

    def __init__(
        self, look: Callable[[], list[Mapping[str, Any]]], say: Callable[[str], None]
    ) -> None:
        """Look once.

        Args:
            look: Returns the nodes as ``ray.nodes`` does.
            say: Takes a sentence.
        """
        self._look, self._say = look, say
        self._nodes = _living(look())
        self._thread: threading.Thread | None = None

    @property
    def described(self) -> str:
        """The nodes, in words."""
        return describe([_node(node) for node in self._nodes.values()])

    @property
    def lives(self) -> bool:
        """Whether it still looks."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, goes_on: Callable[[], bool]) -> None:
        """Look again and again in a thread, while ``goes_on()``."""

        def run() -> None:
            pause = threading.Event()
            while not pause.wait(LOOK_SECONDS) and goes_on():
                try:
                    self.compare()
                except Exception:  # Ray is going away: whoever waits for it says so
                    return

        self._thread = threading.Thread(target=run, daemon=True, name="echostill-nodes")
        self._thread.start()

    def compare(self) -> None:
        """Look, and say what was lost or came since."""
        now = _living(self._look())
        for key in self._nodes.keys() - now.keys():
            lost = self._nodes[key]
            left = describe([_node(node) for node in now.values()])
            self._say(
                f"node {lost['NodeManagerAddress']} ({_size(lost)}) was lost: ended, out of "
                "memory, or cut off from the network. What it had not finished is done again where "
                f"there is room, here or on a node that comes; the cluster has {left}."
            )
        for key in now.keys() - self._nodes.keys():
            came = now[key]
            self._say(f"node {came['NodeManagerAddress']} ({_size(came)}) came")
        self._nodes = now


def _living(nodes: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {str(node["NodeID"]): node for node in nodes if node["Alive"]}


def _node(node: Mapping[str, Any]) -> Node:
    resources = node["Resources"]
    return Node(float(resources.get("CPU", 0)), float(resources.get("GPU", 0)))


def _size(node: Mapping[str, Any]) -> str:
    return describe([_node(node)]).removeprefix("1 node of ")


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
