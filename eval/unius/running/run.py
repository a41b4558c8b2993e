"""A run of the benchmark: a Ray task for each (set, model, seed), each row kept when it is done.

An interrupted run continues with what is missing. More sets, models or seeds add rows to those that
are there; other settings of the protocol need another name.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from echostill.eval.efficiency import efficiency
from echostill.eval.names import TRIVIAL
from echostill.eval.unius.protocols.data import BenchTask, find_tasks, load_data
from echostill.eval.unius.protocols.detection import run_detection
from echostill.eval.unius.protocols.frozen import run_frozen
from echostill.eval.unius.protocols.measures import Measured
from echostill.eval.unius.protocols.networks import UNet, network_for
from echostill.eval.unius.protocols.published import run_published
from echostill.eval.unius.protocols.settings import IMAGE_SIZE, ProtocolSettings
from echostill.eval.unius.protocols.trivial import run_trivial
from echostill.eval.unius.running import rows
from echostill.eval.unius.running.models import UNET, BenchUnit, find_bench_units
from echostill.eval.unius.running.settings import BenchConfig
from echostill.platform.cluster.devices import compute_device
from echostill.platform.cluster.nodes import Nodes
from echostill.platform.cluster.plans import WorkerPlan, plan_workers
from echostill.platform.cluster.waiting import describe_plan, plan_on_cluster
from echostill.platform.computing.settling import say_if_slow, settle
from echostill.platform.progress import Progress
from echostill.platform.ray_tasks import TaskPool
from echostill.platform.stage import Plan, Stage, StageResult, logged
from echostill.platform.stages import BENCH
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store, save_configuration
from echostill.platform.training.tracking import Tracker, nested_under


@logged(BENCH)
def run_bench(config: BenchConfig, *, overwrite: bool = False) -> StageResult:
    """Measure every model on every task with every seed; what is done already is kept.

    Returns:
        Counts of units, and of those that were there before.

    Raises:
        UsageError: A set, a model or weights are not there, or the name holds results of other
            settings.
    """
    store = Store(config.store)
    storage = store.benchmark(config.name)
    _, units = _units(config, store)
    config = settle(config, storage, partial(_plan, config, len(units)), overwrite=overwrite)
    rows.claim(storage, config.protocol, config.precision).take(overwrite)
    todo = [unit for unit in units if not storage.exists(rows.row_file(unit))]
    if todo:
        save_configuration(storage, config)
        _run_units(config, store, storage, todo)
    _write_costs(storage, units)
    rows.finish(storage)
    done = len(units) - len(todo)
    earlier = f" ({done} done earlier)" if done else ""
    where = storage.root
    return StageResult(
        "bench",
        (f"benchmarks/{config.name}",),
        where,
        {"units": len(units), "earlier": done},
        f"{len(units)} results{earlier}: {where}",
        not todo,
    )


def plan_bench(config: BenchConfig, *, overwrite: bool = False) -> Plan:
    """Say what :func:`run_bench` would do, with hours estimated from a timed step."""
    store = Store(config.store)
    storage = store.benchmark(config.name)
    tasks, units = _units(config, store)
    make = partial(_plan, config, len(units))
    config = settle(config, storage, make, overwrite=overwrite, connect=False)
    replaces = rows.claim(storage, config.protocol, config.precision).check(overwrite)
    todo = [u for u in units if replaces or not storage.exists(rows.row_file(u))]
    out = Plan("bench")
    out.add("tasks", ", ".join(task.name for task in tasks))
    out.add("models", ", ".join(dict.fromkeys(unit.model.candidate for unit in units)))
    out.add("seeds", ", ".join(str(seed) for seed in config.seeds))
    out.add("protocols", ", ".join(config.protocols))
    out.add("workers", describe_plan(config, partial(_plan, config, len(units))))
    out.add("precision", config.precision)
    out.add("already done", f"{len(units) - len(todo)} of {len(units)} results")
    hours = estimate_hours(todo, config)
    out.add("estimate", f"{hours:.2g} hours of one worker of this machine, from a timed step")
    out.add("result", storage.root)
    return out


def measure_unit(unit: BenchUnit, config: BenchConfig) -> tuple[rows.Row, bytes]:
    """Do one unit: its row and its predictions. Depends on nothing but the arguments."""
    device = compute_device()
    if unit.model.model in TRIVIAL:
        size = config.protocol.image_size or IMAGE_SIZE
        data = load_data(unit.task, size)
        found = run_trivial(unit.model.model, data, config.protocol, unit.model.seed)
        return rows.make_row(unit, size, found)
    encoder = None if unit.model.model == UNET else unit.model.load()
    size = (config.protocol.image_size or IMAGE_SIZE) if encoder is None else encoder.image_size
    data = load_data(unit.task, size)
    settings, seed, precision = config.protocol, unit.model.seed, config.precision
    measured: list[Measured]
    if encoder is not None and unit.task.kind == "detection":
        measured = run_detection(encoder, data, settings, seed, device, precision)
    elif encoder is not None and unit.protocol == "frozen":
        measured = run_frozen(encoder, data, settings, seed, device, precision)
    else:
        measured = run_published(encoder, data, settings, seed, device, precision)
    return rows.make_row(unit, size, measured)


def estimate_hours(units: Sequence[BenchUnit], config: BenchConfig) -> float:
    """Estimate how long one worker takes, from a pass of each model that is timed here."""
    seconds: dict[tuple[str, int | None, str], float] = {}
    total = 0.0
    for unit in units:
        if unit.model.model in TRIVIAL:
            continue
        model = (unit.model.model, unit.model.image_size, unit.protocol)
        if model not in seconds:
            seconds[model] = _seconds_per_image(unit, config.protocol)
        total += seconds[model] * _images(unit, config.protocol)
    return total / 3600


def _units(config: BenchConfig, store: Store) -> tuple[list[BenchTask], list[BenchUnit]]:
    tasks = find_tasks(config.prepared, config.sets, config.kinds)
    return tasks, find_bench_units(config, store, tasks)


def _plan(config: BenchConfig, units: int, nodes: Nodes) -> WorkerPlan:
    return plan_workers(config.workers, units, nodes, device=config.compute_on)


def _run_units(
    config: BenchConfig, store: Store, storage: Storage, todo: Sequence[BenchUnit]
) -> None:
    where = plan_on_cluster(config, partial(_plan, config, len(todo)))
    say_if_slow("bench", config.precision, where)
    pool = TaskPool(
        where.workers,
        address=config.address,
        cpus=where.cpus_per_worker,
        gpus=where.gpus_per_worker,
        kept="Finished results are kept: the same command continues.",
    )

    def work(unit: BenchUnit) -> tuple[rows.Row, bytes]:
        torch.set_num_threads(where.threads)
        return measure_unit(unit, config)

    about = {"sets": config.sets, "models": config.models, "seeds": config.seeds}
    tracker = Tracker.start(config.tracking, config.store, storage, f"bench-{config.name}", about)
    with nested_under(tracker), Progress("bench", len(todo), enabled=config.progress) as bar:
        for number, (row, predictions) in pool.map(work, todo, describe=BenchUnit.describe):
            unit = todo[number]
            rows.write_row(storage, unit, row, predictions)
            _track(config, storage, unit, row)
            bar.advance(note=unit.describe())
    tracker.finish()


def _track(config: BenchConfig, storage: Storage, unit: BenchUnit, row: rows.Row) -> None:
    """Record a unit as a run of its own, nested under the benchmark's."""
    about = {key: row[key] for key in ("task", "candidate", "model", "seed", "protocol", "run")}
    place = storage.at(f"tracking/{unit.key.digest[:24]}")
    tracker = Tracker.start(config.tracking, config.store, place, unit.describe(), about)
    values = {
        f"{one['method']}/{one['condition']}/{one['share']:g}/{name}": value
        for one in row["measured"]
        for name, value in one["metrics"].items()
    }
    tracker.metrics([{"step": 0, **values}])
    tracker.finish()


def _write_costs(storage: Storage, units: Sequence[BenchUnit]) -> None:
    """Time each model once; what is there is kept, since latencies differ from time to time."""
    costs: dict[str, Any] = {}
    if storage.exists(rows.COSTS):
        costs = json.loads(storage.read(rows.COSTS))
    for unit in units:
        if unit.model.candidate not in costs:
            costs[unit.model.candidate] = _cost(unit)
    storage.write(rows.COSTS, json.dumps(costs, indent=1).encode())


def _cost(unit: BenchUnit) -> dict[str, Any]:
    if unit.model.model in TRIVIAL:
        return {"parameters": 0}
    if unit.model.model != UNET:
        return dict(efficiency(unit.model.build()))
    return {"parameters": sum(parameter.numel() for parameter in UNet(1).parameters())}


def _images(unit: BenchUnit, settings: ProtocolSettings) -> float:
    """Return how many images go through the model: once each, or in every epoch."""
    task, published = unit.task, settings.published
    changed = min(task.rows, settings.corrupted_images) * len(settings.corruptions)
    if unit.protocol == "frozen":
        return task.rows + changed
    classifies = task.kind == "classification"
    epochs = published.classification_epochs if classifies else published.segmentation_epochs
    return epochs * task.training * sum(settings.shares) + changed


def _seconds_per_image(unit: BenchUnit, settings: ProtocolSettings) -> float:
    """Time a pass of frozen features, or a training step without its optimiser."""
    trains = unit.protocol == "published"
    encoder = None if unit.model.model == UNET else replace(unit.model, weights=None).load()
    size = (settings.image_size or IMAGE_SIZE) if encoder is None else encoder.image_size
    batch = torch.full((settings.published.batch_size, 3, size, size), 0.5)
    segments = unit.task.kind != "classification"
    network: Any = network_for(encoder, 2, segments=segments, width=128, dice_weight=0.0)
    targets = torch.zeros((len(batch), size, size) if segments else len(batch), dtype=torch.long)
    for timed in (False, True):
        started = time.perf_counter()
        if trains:
            torch.autograd.backward(network.training_step(batch, targets))
        elif encoder is not None:
            with torch.inference_mode():
                encoder(batch)
        if timed:
            break
    return (time.perf_counter() - started) / len(batch)


BENCH_STAGE = Stage(BENCH, BenchConfig, run_bench, plan_bench)
