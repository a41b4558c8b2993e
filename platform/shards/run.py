"""Shards through Ray Data: a pool of actors.

One shard is one row of a block, so a shard stays whole and an actor has one at a time. Where its
input is decoded elsewhere it has two: one is computed while the other one is decoded, or written.
Each actor counts rows, quarantined rows and seconds for Prometheus (``platform.cluster.metrics``).
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from echostill.platform.cluster import metrics
from echostill.platform.cluster.plans import WorkerPlan
from echostill.platform.cluster.sight import EXPECTED
from echostill.platform.errors import UsageError
from echostill.platform.ray_errors import worker_errors
from echostill.platform.shards.files import ShardFiles, ShardWorker
from echostill.platform.shards.outcome import Outcome
from echostill.platform.shards.records import Record

WAITING = 1  # shards on their way to an actor, beside those that it works on
OVERLAPPING = 2  # shards that an actor works on where its input is decoded elsewhere


def stream(
    stage: ShardFiles,
    payloads: Sequence[Any],
    todo: Sequence[int],
    make_worker: Callable[[], ShardWorker],
    plan: WorkerPlan,
    decode: Callable[[Any], Any] | None,
    retry: bool,
) -> Generator[dict[str, Any], None, None]:
    """Run shards on the connected Ray; yield a record of each as it is finished.

    Args:
        stage: The stage, which writes the shards.
        payloads: One for each shard, made when it is asked for.
        todo: Shards to run.
        make_worker: Makes a worker; called once in each worker process.
        plan: Workers, decoders and what each reserves.
        decode: Begins to make of a payload what the worker gets, in tasks of its own; called while
            the shard before is computed.
        retry: Try the quarantined units of finished shards again.

    Yields:
        ``record``, ``worker`` (a name), ``seconds`` (by what took them) and ``ended``, the worker's
        clock: what the driver hears of comes in bunches.

    Raises:
        EchostillError: A worker failed, or Ray did.
        UsageError: A worker's node does not see the store.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"shard": index, "payload": json.dumps(payloads[index])} for index in todo]
    shards = ray.data.from_items(items, override_num_blocks=len(items))
    device = "gpu" if plan.gpus_per_worker else "cpu"
    at_once = OVERLAPPING if decode is not None else 1
    # Ray 2.60 has no name of its own for this among the parameters, and 2.64 will take no others.
    overlapping = {"max_concurrency": at_once} if at_once > 1 else {}
    shards = shards.map_batches(
        ShardActor,
        fn_constructor_args=(stage, make_worker, plan.threads, retry, device, decode),
        batch_size=1,
        compute=_pool(plan, len(items), at_once),
        num_cpus=plan.cpus_per_worker,
        num_gpus=plan.gpus_per_worker or None,
        **overlapping,
    )
    seen: set[str] = set()  # workers
    with worker_errors(stage.name, "Finished shards are kept: the same command continues."):
        for batch in shards.iter_batches(batch_size=None, prefetch_batches=0):
            for text in batch["finished"]:
                finished = json.loads(str(text))
                node = finished.pop("node")
                if finished["worker"] not in seen:
                    check_arrived(stage, finished["record"], node)
                    seen.add(finished["worker"])
                yield finished


def check_arrived(stage: ShardFiles, record: Record, node: str) -> None:
    """Look for a worker's first shard where this process sees the store.

    Nodes prove that they see it before the work begins; one that joins later does so here.

    Raises:
        UsageError: It is not there; names the node.
    """
    if stage.record(int(record["shard"])) is None:
        raise UsageError(
            f"node {node} wrote shard {record['shard']} to '{stage.table.root}', and it is not "
            f"there for this machine. {EXPECTED}"
        )


def _pool(plan: WorkerPlan, shards: int, at_once: int) -> Any:
    """The pool of a plan: of fixed size, or between its bounds, as Ray Data finds it busy."""
    from ray.data import ActorPoolStrategy

    workers = min(plan.workers, shards)
    calls = {
        "max_tasks_in_flight_per_actor": at_once + WAITING,
        "enable_true_multi_threading": at_once > 1,
    }
    if plan.fewest is None or plan.most is None:
        return ActorPoolStrategy(size=workers, **calls)
    return ActorPoolStrategy(
        min_size=min(plan.fewest, workers),
        max_size=min(plan.most, shards),
        initial_size=workers,
        **calls,
    )


class ShardActor:
    """The Ray Data actor: one worker, fed one shard at a time.

    With ``decode`` two threads call it. One shard is computed at a time; meanwhile the next one is
    begun, and the last one written.
    """

    def __init__(
        self,
        stage: ShardFiles,
        make_worker: Callable[[], ShardWorker],
        threads: int,
        retry: bool,
        device: str,
        decode: Callable[[Any], Any] | None = None,
    ) -> None:
        import ray
        import torch

        torch.set_num_threads(threads)
        self._stage, self._worker, self._retry = stage, make_worker(), retry
        self._threads, self._decode = threads, decode
        self._turn, self._counting = threading.Lock(), threading.Lock()
        self._spent = 0.0  # seconds of the processor that shards have been charged with
        self._name = uuid.uuid4().hex[:6]
        self._node = ray.util.get_node_ip_address()
        self._metrics = metrics.MetricPublisher(metrics.SHARDS, stage=stage.name, device=device)
        self._free = time.perf_counter()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Finish the shards of a block: there is one in each."""
        import torch

        torch.set_num_threads(self._threads)  # of this thread, which may be another one
        finished = [
            json.dumps(self._finish(int(index), json.loads(str(given))))
            for index, given in zip(batch["shard"], batch["payload"], strict=True)
        ]
        return {"finished": finished}

    def _finish(self, index: int, payload: Any) -> dict[str, Any]:
        earlier = self._stage.record(index)
        if earlier is not None and not self._retry:
            # An actor that was lost had written this shard, and its answer was lost with it.
            return self._said(earlier, {}, time.time())
        if self._decode is not None:
            payload = self._decode(payload)
        with ExitStack() as attempt:
            with self._turn:
                attempt.enter_context(self._stage.attempt(index))
                started, worked = time.perf_counter(), time.process_time()
                outcome, record = self._compute(payload, earlier)
                computed = time.perf_counter()
                idle, self._free = started - self._free, computed
            begun = time.perf_counter()
            if record is None:
                record = self._stage.write(index, outcome)
            written, ended = time.perf_counter(), round(time.time(), 3)
        seconds = {**outcome.seconds, "work": computed - started, "write": written - begun}
        with self._counting:
            if self._decode is None:
                self._free = written
            # Over all threads, writing too; of shards that overlap each second counts once.
            now = time.process_time()
            seconds["processor"], self._spent = now - max(worked, self._spent), now
            self._count(outcome, {**seconds, "idle": idle})
        rounded = {name: round(value, 4) for name, value in seconds.items()}
        return self._said(record, rounded, ended)

    def _compute(self, payload: Any, earlier: Record | None) -> tuple[Outcome, Record | None]:
        """Compute a shard, or what lies in its quarantine again.

        Returns:
            The outcome, and the record there is already where the outcome is the same as before.
        """
        if earlier is None:
            return self._worker.process(payload), None
        before = self._stage.read(earlier)
        outcome = replace(self._again(payload, before), seconds={})
        return outcome, earlier if outcome.same_tables(before) else None

    def _said(self, record: Record, seconds: dict[str, float], ended: float) -> dict[str, Any]:
        """What the driver hears of a shard."""
        return {
            "record": record,
            "worker": self._name,
            "node": self._node,
            "seconds": seconds,
            "ended": ended,
        }

    def _again(self, payload: Any, before: Outcome) -> Outcome:
        """Do the units in quarantine again; a shard that is one unit, as a whole."""
        if before.units is None:
            return self._worker.process(payload)
        failed = before.failed_units
        return before.replaced(failed, self._worker.process_units(payload, failed))

    def _count(self, outcome: Outcome, seconds: dict[str, float]) -> None:
        rows, held = outcome.rows.num_rows, outcome.quarantined.num_rows
        self._metrics.add(metrics.ROWS, rows)
        self._metrics.add(metrics.QUARANTINED, held)
        for phase, value in seconds.items():
            self._metrics.add(metrics.SECONDS, value, phase=phase)
        spent = max(seconds["work"] + seconds["write"], 1e-9)
        self._metrics.set(metrics.PACE, (rows + held) / spent)
