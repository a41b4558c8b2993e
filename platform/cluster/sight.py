"""Whether the nodes of a cluster see the store that they are to write into.

A folder of the same name on each machine looks like a store until the results are missing. So the
driver leaves a random word in the store, every other node reads it and leaves one of its own, and
the driver reads those back. On one machine there is nothing to prove. A node that joins later has
not been asked: its workers prove it with their first shard, or before they train.
"""

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from echostill.platform import runtime
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.progress import console
from echostill.platform.tables.lease import FOLDER
from echostill.platform.tables.storage import Storage

SECONDS = 60.0  # for all nodes to answer; one that is too busy for that is taken at its word
EXPECTED = (
    "Expected a folder that all nodes mount under the same path, or an s3:// or gs:// URI that "
    "all may read and write."
)

_lock = threading.Lock()
_proved: set[tuple[str, str]] = set()  # stores and nodes


def check_sight(root: str, address: str | None = None) -> None:
    """Let every node that can work prove that it reads and writes the store.

    Each node proves it once for a store in a process. No CPU is reserved for it.

    Args:
        root: The store.
        address: Of the cluster, from the configuration. With ``ray://`` this process is on none of
            its nodes.

    Raises:
        UsageError: A node does not see the store; names the node.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.get_runtime_context()
    if runtime.is_local() or context.get_task_id() is not None:
        return
    client = (address or os.environ.get("RAY_ADDRESS") or "").startswith("ray://")
    own = "" if client else context.get_node_id()
    with _lock:
        nodes = [
            node
            for node in ray.nodes()
            if node["Alive"]
            and node["NodeID"] != own
            and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
            and (root, node["NodeID"]) not in _proved
        ]
        if not nodes:
            return

        def ask(node: dict[str, Any], word: str) -> Any:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            kind: Any = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(prove)
            return kind.remote(root, word, node["NodeID"])

        def wait(asked: list[Any]) -> dict[Any, str]:
            answered, _ = ray.wait(asked, num_returns=len(asked), timeout=SECONDS)
            answers = {}
            for each in answered:
                try:
                    answers[each] = ray.get(each)
                except ray.exceptions.RayError:  # the node is gone: it will do no work either
                    answers[each] = ""
            return answers

        silent = compare(root, nodes, ask, wait)
        _proved.update((root, node["NodeID"]) for node in nodes)
    for node in silent:
        console.print(
            f"node {node['NodeManagerAddress']} did not say within {SECONDS:g} s whether it sees "
            f"the store '{root}'; the work begins without its word.",
            markup=False,
            soft_wrap=True,
        )


def compare(
    root: str,
    nodes: list[dict[str, Any]],
    ask: Callable[[dict[str, Any], str], Any],
    wait: Callable[[list[Any]], dict[Any, str]],
) -> list[dict[str, Any]]:
    """Leave a word, ask the nodes, and read what they left.

    Args:
        root: The store.
        nodes: As ``ray.nodes`` has them.
        ask: Starts :func:`prove` on a node with a word; returns what to wait for.
        wait: Waits for those; returns the answers of the ones that came in time.

    Returns:
        The nodes that did not answer.

    Raises:
        UsageError: A node answered that it does not see the store, or left nothing in it.
    """
    storage, word = Storage(root).at(FOLDER), uuid.uuid4().hex
    storage.write(f"seen-{word}", word.encode())
    try:
        asked = {ask(node, word): node for node in nodes}
        answers = wait(list(asked))
        for key, answer in answers.items():
            node = asked[key]
            left = f"seen-{word}-{node['NodeID']}"
            if answer == word:
                if storage.exists(left) and storage.read(left).decode() == word:
                    continue
                answer = "what it wrote there is not here"
            if answer:
                raise UsageError(
                    f"node {node['NodeManagerAddress']} does not see the store '{root}' as this "
                    f"machine does: {answer}. {EXPECTED}"
                )
        return [node for key, node in asked.items() if key not in answers]
    finally:
        with suppress(EchostillError, OSError):
            for name in storage.list():
                if name.startswith(f"seen-{word}"):
                    storage.delete(name)


def prove(root: str, word: str, node: str) -> str:
    """Read the driver's word on another node, and leave it there again.

    Returns:
        The word as it was read; a reason where it could not be.
    """
    try:
        storage = Storage(root).at(FOLDER)
        if not storage.exists(f"seen-{word}"):
            return "what was written here is not there"
        found = storage.read(f"seen-{word}").decode()
        storage.write(f"seen-{word}-{node}", found.encode())
        return found
    except (EchostillError, OSError) as error:
        return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


@dataclass(frozen=True)
class SharedWord:
    """A word that the driver has left in a folder, for workers wherever and whenever they start.

    It is pickled, and goes to them on another way than through the folder.
    """

    storage: Storage
    word: str

    def prove(self, node: str) -> None:
        """Read it here, and leave it again.

        Args:
            node: Name of the node that this worker runs on.

        Raises:
            UsageError: It is not here, or nothing can be written here; names the node.
            EchostillError: An object store does not answer.
        """
        name = f"seen-{self.word}"
        problem = ""
        if not self.storage.exists(name):
            problem = "what was written there is not here"
        else:
            try:
                self.storage.write(f"{name}-{uuid.uuid4().hex[:8]}", self.word.encode())
            except OSError as error:  # of a local folder; an object store's says more
                problem = " ".join(str(error).split()).rstrip(".")
        if problem:
            raise UsageError(
                f"node {node} does not see '{self.storage.root}' as the machine does that started "
                f"the run: {problem}. {EXPECTED}"
            )


@contextmanager
def shared_word(storage: Storage) -> Iterator[SharedWord]:
    """Leave a word in a folder for as long as workers may ask for it."""
    left = SharedWord(storage, uuid.uuid4().hex)
    storage.write(f"seen-{left.word}", left.word.encode())
    try:
        yield left
    finally:
        with suppress(EchostillError, OSError):
            for name in storage.list():
                if name.startswith(f"seen-{left.word}"):
                    storage.delete(name)
