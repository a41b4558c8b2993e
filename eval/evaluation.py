"""The evaluate stage: teacher and students on labelled benchmarks, split by group, seed by seed.

Each (candidate, task, seed) is a Ray task whose result is stored as soon as it is available, so
that an interrupted evaluation continues where it stopped. Within a seed every candidate sees the
same split, the same order and the same number of steps.
"""

import json
from functools import partial
from typing import Any

import torch
from pydantic import Field, field_validator

from echostill.eval.candidates import (
    Candidate,
    Model,
    Unit,
    build_models,
    find_units,
    weights_identity,
)
from echostill.eval.datasets import LabelledDataset, TaskSettings, load_dataset
from echostill.eval.efficiency import efficiency
from echostill.eval.finetune import FineTuneSettings, finetune
from echostill.eval.heads import check_segmentation
from echostill.eval.probes import (
    knn_probe,
    linear_probe,
    linear_probe_segmentation,
    pooled_features,
    token_features,
)
from echostill.eval.splits import split_dataset
from echostill.platform import stages
from echostill.platform.cluster.devices import compute_device
from echostill.platform.cluster.nodes import Nodes
from echostill.platform.cluster.plans import WorkerPlan, plan_workers
from echostill.platform.cluster.waiting import describe_plan, plan_on_cluster
from echostill.platform.config import ModelsConfig, execution
from echostill.platform.names import Name
from echostill.platform.progress import Progress
from echostill.platform.ray_tasks import TaskPool
from echostill.platform.stage import Plan, Stage, StageResult, logged
from echostill.platform.tables.fingerprint import Claim, fingerprint
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.store import Store, save_configuration
from echostill.platform.training.tracking import Tracker

RESULT = "evaluation.json"


class EvaluateConfig(ModelsConfig):
    """Evaluation on labelled benchmarks."""

    name: Name = Field("default", description="Name of the evaluation and its report.")
    tasks: tuple[TaskSettings, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    test_share: float = Field(0.4, gt=0, lt=1, description="Fraction of each task for testing.")
    neighbours: int = Field(10, ge=1, description="Neighbours of the k-NN probe.")
    finetune: FineTuneSettings = FineTuneSettings()
    candidates: tuple[Candidate, ...] = Field(
        (), description="Default: the teacher, every distilled student, the untrained student."
    )
    workers: int | None = execution(
        None, "Concurrent evaluations; default one per GPU, without GPUs one per CPU.", ge=1
    )

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):  # a repeated seed would make the spread too small
            raise ValueError("a seed is listed more than once: list each seed once")
        return seeds


@logged(stages.EVALUATE)
def evaluate(config: EvaluateConfig, *, overwrite: bool = False) -> StageResult:
    """Evaluate every candidate on every task with every seed.

    Returns:
        Counts of evaluations, tasks and seeds. The results are in the store's
        ``reports/<name>/evaluation.json``.
    """
    store = Store(config.store)
    storage = store.report(config.name)
    units = _units(config, store)
    sizes, datasets = _datasets(config, units)
    _claim(config, storage, units, datasets).take(overwrite)
    if storage.exists(RESULT):
        sentence = f"already done: {storage.locate(RESULT)}"
        return _result(config, storage, len(units), sentence, already_done=True)
    save_configuration(storage, config)
    todo = [unit for unit in units if not storage.exists(unit.file)]
    if todo:
        _run_units(config, storage, todo, sizes, datasets)
    results = [row for unit in units for row in json.loads(storage.read(unit.file))]
    evaluation = {
        "tasks": [_describe(config.tasks, datasets, task.name) for task in config.tasks],
        "seeds": list(config.seeds),
        "finetune_steps": config.finetune.steps,
        "test_share": config.test_share,
        "candidates": _candidates_with_costs(units, sizes),
        "results": results,
    }
    _track(config, storage, evaluation)
    storage.write(RESULT, json.dumps(evaluation, indent=1).encode())
    sentence = f"{len(units)} evaluations on {len(config.tasks)} tasks: {storage.locate(RESULT)}"
    return _result(config, storage, len(units), sentence)


def _result(
    config: EvaluateConfig,
    storage: Storage,
    units: int,
    sentence: str,
    *,
    already_done: bool = False,
) -> StageResult:
    return StageResult(
        "evaluate",
        (f"reports/{config.name}",),
        storage.locate(RESULT),
        {"evaluations": units, "tasks": len(config.tasks), "seeds": len(config.seeds)},
        sentence,
        already_done,
    )


def _datasets(
    config: EvaluateConfig, units: list[Unit]
) -> tuple[dict[Model, int], dict[tuple[str, int], LabelledDataset]]:
    """Return each model's input side, and the tasks' images at each of these sides.

    Raises:
        UsageError: A model cannot be used for a task.
    """
    models = build_models(units)
    if any(task.kind == "segmentation" for task in config.tasks):
        for encoder in models.values():
            check_segmentation(encoder)
    sizes = {model: encoder.image_size for model, encoder in models.items()}
    datasets = {
        (task.name, size): load_dataset(task, size)
        for task in config.tasks
        for size in sorted(set(sizes.values()))
    }
    return sizes, datasets


def _claim(
    config: EvaluateConfig,
    storage: Storage,
    units: list[Unit],
    datasets: dict[tuple[str, int], LabelledDataset],
) -> Claim:
    """Return the claim on the evaluation's folder, which the report writes into as well."""
    wanted = fingerprint(
        config,
        weights=weights_identity(units),
        inputs={f"{name}@{size}": _digest(data) for (name, size), data in datasets.items()},
        without=("teacher",),
    )
    about = {
        f"inputs.{name}@{size}": f"{len(data)} images" for (name, size), data in datasets.items()
    }
    return Claim(storage, wanted, "evaluate", "an evaluation", "report", about)


def plan_evaluate(config: EvaluateConfig, *, overwrite: bool = False) -> Plan:
    """Describe what :func:`evaluate` would do."""
    store = Store(config.store)
    storage = store.report(config.name)
    units = _units(config, store)
    replaces = _claim(config, storage, units, _datasets(config, units)[1]).check(overwrite)
    out = Plan("evaluate")
    out.add("candidates", ", ".join(dict.fromkeys(unit.candidate for unit in units)))
    out.add("tasks", ", ".join(f"{task.name} ({task.kind})" for task in config.tasks))
    out.add("seeds", ", ".join(str(seed) for seed in config.seeds))
    out.add("workers", describe_plan(config, partial(_plan, config, len(units))))
    done = 0 if replaces else sum(storage.exists(unit.file) for unit in units)
    out.add("already done", f"{done} of {len(units)} evaluations")
    out.add("result", storage.locate(RESULT))
    return out


def _units(config: EvaluateConfig, store: Store) -> list[Unit]:
    tasks = [task.name for task in config.tasks]
    return find_units(config, store, config.candidates, tasks, config.seeds)


def evaluate_unit(
    unit: Unit, dataset: LabelledDataset, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """Run the probes and the fine-tuning of one unit; a row of metrics per method."""
    device = compute_device()
    encoder = unit.load()
    split = split_dataset(dataset, unit.seed, config.test_share)
    measured: dict[str, dict[str, float]] = {}
    if dataset.kind == "classification":
        features = pooled_features(encoder, dataset.pixels, device=device)
        measured["k-NN"] = knn_probe(features, dataset, split, neighbours=config.neighbours).metrics
        measured["linear probe"] = linear_probe(features, dataset, split, seed=unit.seed).metrics
    else:
        tokens = token_features(encoder, dataset.pixels, device=device)
        measured["linear probe"] = linear_probe_segmentation(
            tokens, dataset, split, seed=unit.seed
        ).metrics
    tuned = finetune(encoder, dataset, split, config.finetune, unit.seed, device)
    measured["fine-tuned"] = tuned.metrics
    return [
        {
            "candidate": unit.candidate,
            "task": unit.task,
            "method": method,
            "seed": unit.seed,
            "run": unit.run,
            "metrics": metrics,
        }
        for method, metrics in measured.items()
    ]


def _plan(config: EvaluateConfig, units: int, nodes: Nodes) -> WorkerPlan:
    return plan_workers(config.workers, units, nodes, device=config.compute_on)


def _run_units(
    config: EvaluateConfig,
    storage: Storage,
    todo: list[Unit],
    sizes: dict[Model, int],
    datasets: dict[tuple[str, int], LabelledDataset],
) -> None:
    where = plan_on_cluster(config, partial(_plan, config, len(todo)))
    tasks = TaskPool(
        where.workers,
        address=config.address,
        cpus=where.cpus_per_worker,
        gpus=where.gpus_per_worker,
        kept="Finished evaluations are kept: the same command continues.",
    )

    def work(unit: Unit) -> list[dict[str, Any]]:
        torch.set_num_threads(where.threads)
        return evaluate_unit(unit, datasets[unit.task, sizes[unit.of]], config)

    def describe(unit: Unit) -> str:
        return f"evaluating {unit.candidate} on {unit.task}, seed {unit.seed}"

    with Progress("evaluate", len(todo), enabled=config.progress) as bar:
        for number, rows in tasks.map(work, todo, describe=describe):
            unit = todo[number]
            storage.write(unit.file, json.dumps(rows).encode())
            bar.advance(note=f"{unit.candidate}, {unit.task}")


def _candidates_with_costs(units: list[Unit], sizes: dict[Model, int]) -> list[dict[str, Any]]:
    """Describe each candidate and its cost; each model is timed once, for all weights."""
    costs: dict[tuple[str, int], dict[str, Any]] = {}
    described: dict[str, dict[str, Any]] = {}
    for unit in units:
        key = (unit.model, sizes[unit.of])
        if key not in costs:
            costs[key] = efficiency(unit.build())
        entry = described.setdefault(
            unit.candidate,
            {"label": unit.candidate, "model": unit.model, "runs": [], **costs[key]},
        )
        if unit.run and unit.run not in entry["runs"]:
            entry["runs"].append(unit.run)
    return list(described.values())


def _describe(
    tasks: tuple[TaskSettings, ...], datasets: dict[tuple[str, int], LabelledDataset], name: str
) -> dict[str, Any]:
    data = next(value for (task, _), value in datasets.items() if task == name)
    return {
        "name": name,
        "kind": data.kind,
        "images": len(data),
        "groups": len(set(data.groups.tolist())),
        "classes": list(data.class_names),
        "notes": list(data.notes),
    }


def _digest(data: LabelledDataset) -> str:
    targets = data.labels if data.labels is not None else data.masks
    assert targets is not None
    parts = [data.pixels.tobytes(), targets.tobytes(), "\n".join(data.groups.tolist()).encode()]
    return sha256("".join(sha256(part) for part in parts).encode())


def _track(config: EvaluateConfig, storage: Storage, evaluation: dict[str, Any]) -> None:
    sums: dict[str, list[float]] = {}
    for row in evaluation["results"]:
        for metric, value in row["metrics"].items():
            key = f"{row['candidate']}/{row['task']}/{row['method']}/{metric}"
            sums.setdefault(key, []).append(value)
    tracker = Tracker.start(
        config.tracking,
        config.store,
        storage,
        f"evaluate-{config.name}",
        {"seeds": str(config.seeds), "finetune_steps": config.finetune.steps},
    )
    means = {key: sum(values) / len(values) for key, values in sums.items()}
    tracker.metrics([{"step": 0, **means}])
    tracker.finish()


STAGE = Stage(stages.EVALUATE, EvaluateConfig, evaluate, plan_evaluate)
