"""`echostill sweep`: distillation over a grid of settings on Ray Tune, compared on one page.

Each run of the grid is an ordinary distillation run in the store and resumes as one. What the sweep
adds beside it is its row of results, ``sweeps/<name>/rows/<run>.json``.
"""

import json
import logging
import math
import os
from typing import Any

import numpy as np

from echostill.distill.distillation import (
    distill,
    plan_distill,
    weight_spread,
)
from echostill.distill.settings import DistillConfig
from echostill.eval.datasets import LabelledDataset, load_dataset
from echostill.eval.probes import (
    knn_probe,
    linear_probe,
    linear_probe_segmentation,
    pooled_features,
    token_features,
)
from echostill.eval.splits import split_dataset
from echostill.jobs.sweeps.comparison import compare, render
from echostill.jobs.sweeps.grid import Trial, TrialRun, expand
from echostill.jobs.sweeps.settings import SweepConfig
from echostill.jobs.sweeps.trivial import Trivial, trivial_probes
from echostill.platform import stages
from echostill.platform.cluster.nodes import Nodes
from echostill.platform.cluster.waiting import cluster_nodes, dry_nodes, plan_on_cluster
from echostill.platform.config import (
    SHARED_KEYS,
    read_document,
    stage_values,
)
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.models.trained import open_run
from echostill.platform.progress import Progress
from echostill.platform.ray_errors import cause_of
from echostill.platform.stage import Plan, Stage, StageResult, logged
from echostill.platform.tables import lease
from echostill.platform.tables.fingerprint import Fingerprint, code_version
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.store import Store, finish_run, read_manifest
from echostill.platform.training.ray import plan as plan_training
from echostill.platform.training.ray import side_by_side
from echostill.platform.training.run import is_finished, read_history
from echostill.platform.training.tracking import PARENT_VARIABLE, Tracker, nested_under

PAGE, TABLE = "comparison.html", "comparison.json"


@logged(stages.SWEEP)
def sweep(config: SweepConfig, *, overwrite: bool = False) -> StageResult:
    """Run what is not finished of the grid, probe every student, and write the comparison.

    Returns:
        Counts of combinations and runs.

    Raises:
        UsageError: A key of the grid is no distillation setting, or a run of that name was made
            from something else.
        EchostillError: Some runs failed; the others are kept and compared.
    """
    store = Store(config.store)
    storage = store.sweep(config.name)
    trials = trials_of(config)
    if config.task is not None:
        load_dataset(config.task, 32)  # a wrong manifest is said now, not after the training
    runs = [run for trial in trials for run in trial.runs]
    _preflight(trials)
    unfinished = [run for run in runs if not is_finished(store.run(run.name))]
    finished = len(runs) - len(unfinished)
    tracker = Tracker.start(
        config.tracking,
        config.store,
        storage,
        f"sweep-{config.name}",
        {"grid": {key: str(values) for key, values in config.grid.items()}},
    )
    failures: dict[str, str] = {}
    with nested_under(tracker):
        if unfinished:
            failures = _train(config, storage, unfinished, tracker, overwrite=overwrite)
        rows = {}
        for run in runs:
            if run.name not in failures:  # finished before, or by now: checked, and probed if not
                rows[run.name] = finish_row(config, storage, run, overwrite=overwrite)
    table = compare(trials, rows, failures, config, _without_models(config, store, list(rows)))
    _write(storage, config, trials, table, store, tracker, failed=bool(failures))
    where = storage.locate(PAGE)
    earlier = f" ({finished} finished earlier)" if finished else ""
    if failures:
        name, reason = next(iter(failures.items()))
        raise EchostillError(
            f"{len(failures)} of {len(runs)} runs failed; the first, {name}: {reason} The others "
            f"are kept and compared: {where}. The same command tries the failed ones again."
        )
    return StageResult(
        "sweep",
        (f"sweeps/{config.name}",),
        where,
        {"combinations": len(trials), "runs": len(runs)},
        f"{len(trials)} combinations, {len(runs)} runs{earlier}: {where}",
        not unfinished,
    )


def plan_sweep(config: SweepConfig, *, overwrite: bool = False) -> Plan:
    """Say what :func:`sweep` would do."""
    store = Store(config.store)
    trials = trials_of(config)
    if config.task is not None:
        load_dataset(config.task, 32)  # refuses what the run would
    out = Plan("sweep")
    for trial in trials:
        done = sum(is_finished(store.run(run.name)) for run in trial.runs)
        out.add(trial.digest, f"{trial.label}; {done} of {len(trial.runs)} run(s) done")
    runs = [run for trial in trials for run in trial.runs]
    at_once = _at_once(config, runs, dry_nodes(config))
    out.add("runs", f"{len(runs)}, {at_once} at once")
    out.add("task", "none" if config.task is None else f"{config.task.name}, k-NN and linear probe")
    out.add("result", store.sweep(config.name).locate(PAGE))
    return out


def trials_of(config: SweepConfig) -> list[Trial]:
    """Build every trial; nothing runs before all of them are valid.

    Raises:
        UsageError: As :func:`expand`, or the base is missing.
    """
    if isinstance(config.base, str):
        values = stage_values(DistillConfig, "distill", read_document(config.base))
    else:
        values = dict(config.base)
    # What the sweep itself says of store, seed and the like stands above its base.
    given = config.model_fields_set & set(SHARED_KEYS) & set(DistillConfig.model_fields)
    values.update({key: getattr(config, key) for key in sorted(given)})
    values.setdefault("store", config.store)
    if values["store"] != config.store:
        raise UsageError(
            f"the sweep's store is '{config.store}' and its base's '{values['store']}': set store "
            "in the sweep."
        )
    return expand(config.name, values, config.grid)


def finish_row(
    config: SweepConfig, storage: Storage, run: TrialRun, *, overwrite: bool = False
) -> dict[str, Any]:
    """Train a run if it is not finished, probe its student, and keep the row of results.

    Raises:
        UsageError: The run was made from another teacher, coreset or configuration.
    """
    distill(
        run.config, overwrite=overwrite
    )  # a finished run is only checked, and refused where it is another's
    store = Store(run.config.store)
    manifest = read_manifest(store.run(run.name))
    assert manifest is not None
    made = {"fingerprint": manifest["fingerprint"]["digest"], "probe": _probe_key(config)}
    file = f"rows/{run.name}.json"
    if storage.exists(file):
        row: dict[str, Any] = json.loads(storage.read(file))
        if row["made"] == made:
            return row
    history = read_history(store.run(run.name))
    row = {
        "made": made,
        "run": run.name,
        "seed": run.config.seeds[0],
        "student": run.config.students[0].name,
        "loss_first": history[0]["loss"],
        "loss_last": history[-1]["loss"],
        "reconstruction_last": history[-1].get("reconstruction"),
        "weight_spread": weight_spread(history),
        "curve": [[entry["step"], entry["loss"]] for entry in history],
        "probe": _probe(config, store, run.name) if config.task is not None else {},
    }
    storage.write(file, json.dumps(row).encode())
    return row


def _preflight(trials: list[Trial]) -> None:
    """Find out now what would fail in every run: a coreset, teacher or cache that is missing."""
    seen = set()
    for run in (run for trial in trials for run in trial.runs):
        config = run.config
        # A cache has to fit each run's own views and layers.
        key = (config.coreset, config.teacher, run.name if config.cache else None)
        if key not in seen:
            seen.add(key)
            plan_distill(config)


def _probe(config: SweepConfig, store: Store, run: str) -> dict[str, list[float]]:
    """Probe a student: the metric of each method, a value per seed of the split."""
    assert config.task is not None
    encoder = open_run(store, run).encoder
    dataset = load_dataset(config.task, encoder.image_size)
    found: dict[str, list[float]] = {}
    if dataset.kind == "classification":
        features = pooled_features(encoder, dataset.pixels)
    else:
        features = token_features(encoder, dataset.pixels)
    for seed in config.probe_seeds:
        for method, value in _probe_once(config, dataset, features, seed).items():
            found.setdefault(method, []).append(value)
    return found


def _without_models(config: SweepConfig, store: Store, runs: list[str]) -> Trivial | None:
    """Test the trivial candidates on the images as the first student sees them."""
    if config.task is None or not runs:
        return None
    side = open_run(store, runs[0]).encoder.image_size
    return trivial_probes(config, load_dataset(config.task, side))


def _probe_once(
    config: SweepConfig, dataset: LabelledDataset, features: np.ndarray, seed: int
) -> dict[str, float]:
    split = split_dataset(dataset, seed, config.test_share)
    if dataset.kind == "segmentation":
        metrics = linear_probe_segmentation(features, dataset, split, seed=seed).metrics
        return {"linear probe": metrics["dice"]}
    near = knn_probe(features, dataset, split, neighbours=config.neighbours).metrics
    linear = linear_probe(features, dataset, split, seed=seed).metrics
    return {
        "k-NN": near["balanced_accuracy"],
        "linear probe": linear["balanced_accuracy"],
    }


def _probe_key(config: SweepConfig) -> str:
    """Digest of what a probe's numbers depend on, beside the run."""
    if config.task is None:
        return ""
    settings = [config.task.model_dump(), config.probe_seeds, config.test_share, config.neighbours]
    return sha256(json.dumps(settings, sort_keys=True).encode())[:16]


def _at_once(config: SweepConfig, runs: list[TrialRun], nodes: Nodes) -> int:
    first = runs[0].config
    return config.at_once or side_by_side(first.training, len(runs), nodes, first.compute_on)


def _train(
    config: SweepConfig,
    storage: Storage,
    runs: list[TrialRun],
    tracker: Tracker,
    *,
    overwrite: bool,
) -> dict[str, str]:
    """Train runs as Tune trials, each of which starts Ray Train; return what failed, and why."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # our own tracking records the runs
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends a sweep as it ends any stage
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths mean here what they mean there
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    first = runs[0].config
    plan_on_cluster(first, lambda nodes: plan_training(first.training, nodes, first.compute_on))
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    at_once = _at_once(config, runs, cluster_nodes())
    owner = lease.owner()

    def trainable(choice: dict[str, Any]) -> dict[str, Any]:
        os.environ[PARENT_VARIABLE] = tracker.run_id
        os.environ[lease.OWNER_VARIABLE] = owner  # its runs share the sweep's lease
        run = runs[choice["run"]]
        own = run.config.model_copy(update={"at_once": at_once})
        try:
            row = finish_row(config, storage, TrialRun(run.name, own), overwrite=overwrite)
        except EchostillError as error:  # in words already: Tune would print where it was raised
            return {"loss": math.inf, "failed": str(error)}
        return {"loss": row["loss_last"]}

    with Progress("sweep", len(runs), enabled=config.progress) as bar:

        class Advance(tune.Callback):  # type: ignore[misc]  # Ray's class is read without types
            def __reduce__(self) -> tuple[Any, tuple[()]]:
                return tune.Callback, ()  # Tune keeps its callbacks on disk; a bar cannot be

            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
                bar.advance(note=runs[trial.config["run"]].name)

            def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
                bar.advance(note=f"{runs[trial.config['run']].name} failed")

        tuner = tune.Tuner(
            # A trial waits for its Ray Train workers, which reserve the CPUs: it takes none itself.
            tune.with_resources(trainable, {"cpu": 0, "memory": 1}),
            param_space={"run": tune.grid_search(list(range(len(runs))))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_once, metric="loss", mode="min", reuse_actors=False
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=storage.root, verbose=0, callbacks=[Advance()]
            ),
        )
        results = tuner.fit()
    storage.delete("tune")  # its bookkeeping: the runs are in the store
    failures = {}
    for result in results:
        assert result.config is not None
        reason = (result.metrics or {}).get("failed")
        if result.error is not None:
            reason = str(cause_of(result.error))
        if reason:
            failures[runs[result.config["run"]].name] = str(reason)
    return failures


def _write(
    storage: Storage,
    config: SweepConfig,
    trials: list[Trial],
    table: dict[str, Any],
    store: Store,
    tracker: Tracker,
    *,
    failed: bool,
) -> None:
    storage.write(TABLE, json.dumps(table, indent=1).encode())
    storage.write(PAGE, render(table, code_version()).encode())
    values = {"grid": {key: list(values) for key, values in config.grid.items()}}
    made = Fingerprint(
        {**values, "trials": [trial.digest for trial in trials]},
        code_version(),
        {},
        {row["run"]: row["made"]["fingerprint"] for row in table["rows"]},
    )
    storage.write("fingerprint.json", json.dumps(made.as_dict(), indent=1).encode())
    finish_run(storage, stage="sweep", files=[TABLE, PAGE], fingerprint=made)
    best = table["best"]
    if best is not None:
        tracker.metrics([{"step": 0, f"best {table['ranked_by']}": best["value"]}])
    if storage.is_local:
        for name in (TABLE, PAGE):
            tracker.artifact(storage.local_path(name))
    tracker.finish("FAILED" if failed else "FINISHED")


STAGE = Stage(stages.SWEEP, SweepConfig, sweep, plan_sweep)
