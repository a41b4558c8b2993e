"""The evaluate stage: teacher, students and trivial candidates on labelled benchmarks.

Every candidate is tested on the same folds by group; each (candidate, training, task) is a Ray task
whose predictions are stored as soon as they are there, so that an interrupted evaluation continues
where it stopped. All numbers are computed from the predictions at the end.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, field_validator, model_validator

from echostill.eval.candidates import (
    Candidate,
    ComingRun,
    Model,
    Unit,
    candidates_with_costs,
    find_units,
    weights_identity,
)
from echostill.eval.comparisons import (
    DEFAULT,
    ComparisonSettings,
    Pair,
    resolve,
    without_candidate,
)
from echostill.eval.datasets import LabelledDataset, TaskSettings
from echostill.eval.finetune import FineTuneSettings, finetune
from echostill.eval.names import FINE_TUNED, FORMAT, RESULT, TRIVIAL
from echostill.eval.predictions import PredictedBy, class_rows, mask_rows, unfinished, with_ends
from echostill.eval.probing.candidates import Protocol, model_rows, trivial_rows
from echostill.eval.splits import Split, dataset_folds
from echostill.eval.summary import summarise
from echostill.eval.tasks import Tasks, describe_task, digest_of, first_of, load_tasks, task_infos
from echostill.platform import stages
from echostill.platform.cluster.devices import compute_device
from echostill.platform.cluster.nodes import Nodes
from echostill.platform.cluster.plans import WorkerPlan, plan_workers
from echostill.platform.cluster.waiting import describe_plan, plan_on_cluster
from echostill.platform.computing.precision import Precision
from echostill.platform.computing.settling import (
    PrecisionConfig,
    say_if_slow,
    settle,
    with_precision,
)
from echostill.platform.config import execution
from echostill.platform.names import Name
from echostill.platform.progress import Progress
from echostill.platform.ray_tasks import TaskPool
from echostill.platform.stage import Plan, Stage, StageResult, logged
from echostill.platform.tables.fingerprint import Claim, fingerprint
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store, save_configuration
from echostill.platform.tables.table import decode_parquet, encode_parquet, write_table
from echostill.platform.training.tracking import RunInput, Tracker


class EvaluateConfig(PrecisionConfig):
    """Evaluation on labelled benchmarks."""

    name: Name = Field("default", description="Name of the evaluation and its report.")
    tasks: tuple[TaskSettings, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(
        (0, 1, 2),
        min_length=1,
        description="Of the untrained student's weights, one training each, and of fine-tuning. "
        "The folds depend on `seed`.",
    )
    folds: int = Field(5, ge=2, description="Folds by group of the cross-validation.")
    neighbours: int = Field(10, ge=1, description="Neighbours of the k-NN probe.")
    shots: tuple[int, ...] = Field(
        (5, 10, 25), description="Groups of each class that a few-shot classifier is trained on."
    )
    few_shot_draws: int = Field(20, ge=1, description="Draws of these groups.")
    comparisons: tuple[ComparisonSettings, ...] = Field(
        DEFAULT,
        description="The primary comparisons, on every task. The report's words are corrected for "
        "their number.",
    )
    finetune: FineTuneSettings | None = Field(
        None, description="Also fine-tune each model with a head until it converges; {} does."
    )
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

    @model_validator(mode="after")
    def _compared_is_done(self) -> "EvaluateConfig":
        if self.finetune is None and any(c.method == FINE_TUNED for c in self.comparisons):
            raise ValueError(
                f"comparisons: the method '{FINE_TUNED}' needs finetune; set finetune: {{}}"
            )
        return self

    @field_validator("candidates")
    @classmethod
    def _labels_are_free(cls, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        for candidate in candidates:
            if candidate.label in TRIVIAL:
                raise ValueError(f"'{candidate.label}' is always evaluated: choose another label")
        return candidates


@logged(stages.EVALUATE)
def evaluate(config: EvaluateConfig, *, overwrite: bool = False) -> StageResult:
    """Evaluate every candidate on every task.

    Returns:
        Counts of evaluations, tasks and predictions. The numbers are in the store's
        ``reports/<name>/evaluation.json``, the predictions in ``predictions/<name>``.
    """
    store = Store(config.store)
    storage = store.report(config.name)
    units, pairs, sizes, datasets, protocols = _prepare(config)
    config = settle(config, storage, partial(_plan, config, len(units)), overwrite=overwrite)
    claim = _claim(config, storage, units, datasets)
    claim.take(overwrite)
    if storage.exists(RESULT):
        sentence = f"already done: {storage.locate(RESULT)}"
        return _result(config, storage, len(units), sentence, already_done=True)
    save_configuration(storage, config)
    todo = [unit for unit in units if not storage.exists(unit.file)]
    if todo:
        _run_units(config, storage, todo, sizes, datasets, protocols)
    parts = [decode_parquet(storage.read(unit.file)) for unit in units]
    parts += [trivial_rows(first_of(datasets, task.name), protocols[task.name])
              for task in config.tasks]  # fmt: skip
    # Units that an earlier release finished lack the columns that came later.
    predictions = pa.concat_tables(parts, promote_options="default")
    write_table(
        store.predictions(config.name),
        predictions,
        stage="evaluate",
        fingerprint=claim.wanted.as_dict(),
    )
    described = _described(config, datasets, protocols, pairs)
    evaluation = {
        "format": FORMAT,
        "tasks": described,
        "folds": config.folds,
        "seed": config.seed,
        "seeds": list(config.seeds),
        "finetuned": config.finetune is not None,
        "planned": [list(pair) for pair in pairs],
        "candidates": candidates_with_costs(units, sizes),
        **summarise(predictions, task_infos(described), pairs, config.seed),
    }
    _track(config, storage, evaluation, datasets)
    storage.write(RESULT, json.dumps(evaluation, indent=1).encode())
    sentence = f"{len(units)} evaluations on {len(config.tasks)} tasks: {storage.locate(RESULT)}"
    remarks = _lacking(config, units)
    for task in described:
        remarks += [f"warning: {task['name']}: {text}" for text in task["warnings"]]
        remarks += [f"{task['name']}: {note}" for note in task["notes"]]
    remarks += [f"warning: {text}" for text in unfinished(evaluation["fine_tunings"])]
    return _result(config, storage, len(units), ". ".join([sentence, *remarks]))


def _described(
    config: EvaluateConfig, datasets: Tasks, protocols: dict[str, Protocol], pairs: list[Pair]
) -> list[dict[str, Any]]:
    count = len(pairs) * len(config.tasks)
    return [describe_task(datasets, protocols, task.name, count) for task in config.tasks]


def _lacking(config: EvaluateConfig, units: list[Unit]) -> list[str]:
    """Name the comparisons that were asked for and cannot be made."""
    if "comparisons" not in config.model_fields_set:  # the usual ones are for what there is
        return []
    roles = {unit.candidate: unit.role for unit in units}
    return [
        f"not compared, since one has no candidate: {item.first} and {item.second}"
        for item in without_candidate(config.comparisons, roles)
    ]


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


def _protocols(config: EvaluateConfig, datasets: Tasks) -> dict[str, Protocol]:
    """Return the folds and draws of each task, the same ones for every candidate.

    Raises:
        UsageError: A task cannot be divided by group.
    """
    return {
        task.name: Protocol(
            data := first_of(datasets, task.name),
            dataset_folds(data, config.folds, config.seed),
            neighbours=config.neighbours,
            shots=config.shots,
            draws=config.few_shot_draws,
            seed=config.seed,
        )
        for task in config.tasks
    }


def _claim(
    config: EvaluateConfig,
    storage: Storage,
    units: list[Unit],
    datasets: Tasks,
) -> Claim:
    """Return the claim on the evaluation's folder, which the report writes into as well."""
    wanted = fingerprint(
        config,
        weights=weights_identity(units),
        inputs={f"{name}@{size}": digest_of(data) for (name, size), data in datasets.items()},
        without=("teacher",),
    )
    wanted = with_precision(wanted, config.precision)
    about = {
        f"inputs.{name}@{size}": f"{len(data)} images" for (name, size), data in datasets.items()
    }
    return Claim(storage, wanted, "evaluate", "an evaluation", "report", about)


def plan_evaluate(config: EvaluateConfig, *, overwrite: bool = False) -> Plan:
    """Describe what :func:`evaluate` would do; opens the manifests and reads every image."""
    storage = Store(config.store).report(config.name)
    units, pairs, _, datasets, protocols = _prepare(config)
    make = partial(_plan, config, len(units))
    config = settle(config, storage, make, overwrite=overwrite, connect=False)
    replaces = _claim(config, storage, units, datasets).check(overwrite)
    out = Plan("evaluate")
    out.add("candidates", ", ".join(dict.fromkeys([*(u.candidate for u in units), *TRIVIAL])))
    out.add("tasks", ", ".join(f"{task.name} ({task.kind})" for task in config.tasks))
    for task in _described(config, datasets, protocols, pairs):
        out.add(f"  {task['name']}", _in_words(task))
        for text in task["warnings"]:
            out.add("  warning", f"{task['name']}: {text}")
    said = [f"{first} - {second} ({method})" for first, second, method in pairs]
    out.add("comparisons", "; ".join([", ".join(said) or "none", *_lacking(config, units)]))
    out.add("workers", describe_plan(config, partial(_plan, config, len(units))))
    out.add("precision", config.precision)
    done = 0 if replaces else sum(storage.exists(unit.file) for unit in units)
    out.add("already done", f"{done} of {len(units)} evaluations")
    out.add("result", storage.locate(RESULT))
    return out


def _in_words(task: dict[str, Any]) -> str:
    said = f"{task['images']} images of {task['groups']} groups, {task['protocol']}"
    return "; ".join([said, *task["notes"]])


def _prepare(
    config: EvaluateConfig, coming: Mapping[str, ComingRun] | None = None
) -> tuple[list[Unit], list[Pair], dict[Model, int], Tasks, dict[str, Protocol]]:
    tasks = [task.name for task in config.tasks]
    store = Store(config.store)
    units = find_units(config, store, config.candidates, tasks, config.seeds, coming)
    pairs = resolve(config.comparisons, {unit.candidate: unit.role for unit in units})
    sizes, datasets = load_tasks(config.tasks, units)
    return units, pairs, sizes, datasets, _protocols(config, datasets)


def check_evaluate(config: EvaluateConfig, coming: Mapping[str, ComingRun]) -> None:
    """Refuse what :func:`evaluate` would, before the runs that it will test are there.

    Args:
        config: The evaluation.
        coming: Runs that earlier stages make.

    Raises:
        UsageError: Weights, models, candidates, labelled sets or comparisons are wrong.
    """
    _prepare(config, coming)


def evaluate_unit(
    unit: Unit,
    dataset: LabelledDataset,
    protocol: Protocol,
    settings: FineTuneSettings | None,
    precision: Precision = "float32",
) -> pa.Table:
    """Run the probes of one unit, and the fine-tuning if wanted; a row per method and image."""
    device = compute_device()
    encoder = unit.load()
    origin = PredictedBy(unit.candidate, unit.run, unit.training)
    rows = model_rows(encoder, origin, dataset, protocol, device, precision)
    if settings is None:
        return rows
    found: dict[int, tuple[np.ndarray, int, bool | None]] = {}
    for number in protocol.folds.tested:
        split = Split(protocol.folds.outside(number), protocol.folds.rows(number))
        tuned = finetune(encoder, dataset, split, settings, unit.seed, device, precision)
        for row, own in zip(split.test.tolist(), tuned.predictions, strict=True):
            found[row] = own, len(tuned.losses), tuned.converged
    predicted, steps, ends = zip(*(found[row] for row in protocol.tested.tolist()), strict=True)
    write = class_rows if dataset.labels is not None else mask_rows
    tuned_rows = write(origin, dataset, FINE_TUNED, protocol.tested, protocol.fold,
                       np.stack(predicted))  # fmt: skip
    return pa.concat_tables([rows, with_ends(tuned_rows, steps, ends)])


def _plan(config: EvaluateConfig, units: int, nodes: Nodes) -> WorkerPlan:
    return plan_workers(config.workers, units, nodes, device=config.compute_on)


def _run_units(
    config: EvaluateConfig,
    storage: Storage,
    todo: list[Unit],
    sizes: dict[Model, int],
    datasets: Tasks,
    protocols: dict[str, Protocol],
) -> None:
    where = plan_on_cluster(config, partial(_plan, config, len(todo)))
    say_if_slow("evaluate", config.precision, where)
    tasks = TaskPool(
        where.workers,
        address=config.address,
        cpus=where.cpus_per_worker,
        gpus=where.gpus_per_worker,
        kept="Finished evaluations are kept: the same command continues.",
    )

    def work(unit: Unit) -> pa.Table:
        torch.set_num_threads(where.threads)
        dataset = datasets[unit.task, sizes[unit.of]]
        protocol = protocols[unit.task]
        return evaluate_unit(unit, dataset, protocol, config.finetune, config.precision)

    def describe(unit: Unit) -> str:
        return f"evaluating {unit.candidate} on {unit.task}, training {unit.training}"

    with Progress("evaluate", len(todo), enabled=config.progress) as bar:
        for number, rows in tasks.map(work, todo, describe=describe):
            unit = todo[number]
            storage.write(unit.file, encode_parquet(rows))
            bar.advance(note=f"{unit.candidate}, {unit.task}")


def _track(
    config: EvaluateConfig, storage: Storage, evaluation: dict[str, Any], datasets: Tasks
) -> None:
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
        {"seeds": str(config.seeds), "folds": config.folds},
    )
    sets = [(task, first_of(datasets, task.name)) for task in config.tasks]
    tracker.inputs(
        [
            RunInput(task.name, digest_of(data), task.manifest, "evaluation", {"rows": len(data)})
            for task, data in sets
        ]
    )
    means = {key: sum(values) / len(values) for key, values in sums.items()}
    tracker.metrics([{"step": 0, **means}])
    tracker.finish()


STAGE = Stage(stages.EVALUATE, EvaluateConfig, evaluate, plan_evaluate)
