"""Shards through Ray Data: a pool of actors, and where GPUs compute, tasks that decode before them.

One shard is one row of a block, so a shard stays whole and an actor has one at a time. Each actor
counts rows, quarantined rows and seconds for Prometheus (see ``platform.cluster.metrics``).
"""

import json
import logging
import time
import uuid
from collections.abc import Callable, Generator
from typing import Any

from echostill.platform.cluster import metrics
from echostill.platform.cluster.plans import WorkerPlan
from echostill.platform.cluster.sight import EXPECTED
from echostill.platform.errors import UsageError
from echostill.platform.ray_errors import worker_errors
from echostill.platform.shards.files import ShardFiles, ShardWorker
from echostill.platform.shards.outcome import Outcome
from echostill.platform.shards.records import Record

AHEAD = 2  # shards sent to an actor: one it works on, one that is on its way


def stream(
    stage: ShardFiles,
    todo: dict[int, Any],
    make_worker: Callable[[], ShardWorker],
    plan: WorkerPlan,
    decode: Callable[[Any], bytes] | None,
    retry: bool,
) -> Generator[dict[str, Any], None, None]:
    """Run shards on the connected Ray; yield a record of each as it is finished.

    Args:
        stage: The stage, which writes the shards.
        todo: Payloads by shard.
        make_worker: Makes a worker; called once in each worker process.
        plan: Workers, decoders and what each reserves.
        decode: Makes of a payload what the worker gets; runs in tasks of its own.
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
    items = [{"shard": index, "payload": json.dumps(todo[index])} for index in todo]
    shards = ray.data.from_items(items, override_num_blocks=len(items))
    if decode is not None and plan.decoders:
        shards = shards.map_batches(
            _decode,
            fn_kwargs={"decode": decode},
            batch_size=1,
            compute=ray.data.TaskPoolStrategy(size=plan.decoders),
            num_cpus=1,
        )
    device = "gpu" if plan.gpus_per_worker else "cpu"
    shards = shards.map_batches(
        ShardActor,
        fn_constructor_args=(stage, make_worker, plan.threads, retry, device),
        batch_size=1,
        compute=_pool(plan, len(items)),
        num_cpus=plan.cpus_per_worker,
        num_gpus=plan.gpus_per_worker or None,
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


def _pool(plan: WorkerPlan, shards: int) -> Any:
    """The pool of a plan: of fixed size, or between its bounds, as Ray Data finds it busy."""
    from ray.data import ActorPoolStrategy

    workers = min(plan.workers, shards)
    if plan.fewest is None or plan.most is None:
        return ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=AHEAD)
    return ActorPoolStrategy(
        min_size=min(plan.fewest, workers),
        max_size=min(plan.most, shards),
        initial_size=workers,
        max_tasks_in_flight_per_actor=AHEAD,
    )


def _decode(batch: dict[str, Any], decode: Callable[[Any], bytes]) -> dict[str, Any]:
    """The task that decodes a shard ahead of the actor that computes it."""
    index, payload = int(batch["shard"][0]), json.loads(str(batch["payload"][0]))
    started = time.perf_counter()
    data = decode(payload)
    seconds = time.perf_counter() - started
    return {"shard": [index], "payload": [data], "decode": [seconds]}


class ShardActor:
    """The Ray Data actor: one worker, fed one shard at a time."""

    def __init__(
        self,
        stage: ShardFiles,
        make_worker: Callable[[], ShardWorker],
        threads: int,
        retry: bool,
        device: str,
    ) -> None:
        import ray
        import torch

        torch.set_num_threads(threads)
        self._stage, self._worker, self._retry = stage, make_worker(), retry
        self._name = uuid.uuid4().hex[:6]
        self._node = ray.util.get_node_ip_address()
        self._metrics = metrics.MetricPublisher(metrics.SHARDS, stage=stage.name, device=device)
        self._free = time.perf_counter()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Finish the shards of a block: there is one in each."""
        finished = []
        for row, index in enumerate(batch["shard"]):
            given = batch["payload"][row]
            payload = given if isinstance(given, bytes) else json.loads(str(given))
            seconds = {"decode": float(batch["decode"][row])} if "decode" in batch else {}
            finished.append(json.dumps(self._finish(int(index), payload, seconds)))
        return {"finished": finished}

    def _finish(self, index: int, payload: Any, seconds: dict[str, float]) -> dict[str, Any]:
        earlier = self._stage.record(index)
        if earlier is not None and not self._retry:
            # An actor that was lost had written this shard, and its answer was lost with it.
            return self._said(earlier, {}, time.time())
        with self._stage.attempt(index):
            started, worked = time.perf_counter(), time.process_time()
            if earlier is None:
                outcome = self._worker.process(payload)
                seconds |= outcome.seconds
                computed = time.perf_counter()
                record = self._stage.write(index, outcome)
            else:
                before = self._stage.read(earlier)
                outcome = self._again(payload, before)
                computed = time.perf_counter()
                same = outcome.same_tables(before)
                record = earlier if same else self._stage.write(index, outcome)
            written, ended = time.perf_counter(), round(time.time(), 3)
        seconds |= {"work": computed - started, "write": written - computed}
        seconds["processor"] = time.process_time() - worked  # over all threads, writing too
        self._count(outcome, {**seconds, "idle": started - self._free})
        self._free = time.perf_counter()
        rounded = {name: round(value, 4) for name, value in seconds.items()}
        return self._said(record, rounded, ended)

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
