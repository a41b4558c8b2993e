"""The main job, ingest to report; each stage is skipped when it is done."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from echostill.distill.distillation import check_students
from echostill.distill.pretraining import PretrainConfig
from echostill.distill.settings import DistillConfig
from echostill.eval.candidates import ComingRun
from echostill.eval.evaluation import EvaluateConfig, check_evaluate
from echostill.eval.names import DISTILLED, MIM_ONLY, TEACHER
from echostill.jobs.stages import find_stage
from echostill.platform.config import (
    ModelsConfig,
    StageConfig,
    apply_overrides,
    read_document,
    resolve,
)
from echostill.platform.errors import UsageError
from echostill.platform.models import create_encoder
from echostill.platform.models.weights import find_teacher
from echostill.platform.preflight.checks import check_stage, check_writable
from echostill.platform.progress import console
from echostill.platform.stages import IN_RUN, STAGES
from echostill.platform.tables.lease import hold
from echostill.platform.tables.store import Store
from echostill.platform.training.run import is_finished


def resolve_stages(
    config_file: str | None, overrides: Sequence[str], *, from_scratch: bool
) -> dict[str, StageConfig]:
    """Resolve the configuration of every stage before any of them starts.

    Args:
        config_file: YAML with a section per stage.
        overrides: ``key=value`` (shared keys) and ``stage.key=value`` texts.
        from_scratch: Pretrain a teacher in place of loading ``teacher.weights``.
    """
    document: dict[str, Any] = apply_overrides(read_document(config_file), overrides, None)
    names = IN_RUN
    if from_scratch:
        document = apply_overrides(document, ["teacher.weights=null", "teacher.key=null"], None)
        names = tuple(name for name in STAGES if name in (*IN_RUN, "pretrain"))
    # A section must be there for the shared keys to be told from a stage's own.
    document.setdefault("ingest", {})
    return {name: resolve(find_stage(name).config, name, document) for name in names}


def _preflight(
    configs: dict[str, StageConfig], from_scratch: bool, *, overwrite: bool = False
) -> None:
    """Find out now what would only fail after minutes of work: weights, models, labelled sets."""
    score, distillation, evaluation = configs["score"], configs["distill"], configs["evaluate"]
    assert isinstance(score, ModelsConfig)
    assert isinstance(distillation, DistillConfig)
    assert isinstance(evaluation, EvaluateConfig)
    found = None if from_scratch else find_teacher(score)
    settings = score.teacher
    with torch.device("meta"):
        teacher = (
            found.build()
            if found
            else create_encoder(
                settings.model, image_size=settings.image_size, pooling=settings.pooling or "mean"
            )
        )
        check_students(distillation, teacher)
    coming = {
        run.name: ComingRun(
            run.model, run.image_size, DISTILLED if run.objective.distil else MIM_ONLY
        )
        for run in distillation.runs()
    }
    if from_scratch:
        pretraining = configs["pretrain"]
        assert isinstance(pretraining, PretrainConfig)
        evaluated = evaluation.teacher
        coming[pretraining.name] = ComingRun(evaluated.model, evaluated.image_size, TEACHER)
    store = Store(evaluation.store)
    if overwrite or not all(is_finished(store.run(name)) for name in coming):
        check_evaluate(evaluation, coming)
    else:  # an evaluation of them may be there too, of another configuration
        find_stage("evaluate").plan(evaluation, overwrite=False)


def run_pipeline(
    config_file: str | None,
    overrides: Sequence[str],
    *,
    from_scratch: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
) -> None:
    """Run (or plan) all stages; what is done already is passed over."""
    configs = resolve_stages(config_file, overrides, from_scratch=from_scratch)
    for name, config in configs.items():
        check_stage(STAGES[name], config)
        if not dry_run:
            check_writable(Store(config.store), STAGES[name].writes)
    _preflight(configs, from_scratch, overwrite=overwrite)
    if dry_run:
        for name, config in configs.items():
            try:
                print(find_stage(name).dry_run(config, overwrite=overwrite))
            except UsageError as error:  # what an earlier stage would make is not there yet
                print(f"{name}\n  waits for an earlier stage: {error}")
        return
    started = time.monotonic()
    with ExitStack() as held:  # between its stages too
        for store in {config.store for config in configs.values()}:
            held.enter_context(hold(Store(store).storage, "run", "run"))
        for name, config in configs.items():
            begun = time.monotonic()
            result = find_stage(name).run(config, overwrite=overwrite)
            console.print(f"[bold]{name:>10}[/bold]  {time.monotonic() - begun:6.1f} s  ", end="")
            console.print(str(result), markup=False, soft_wrap=True)
    print(f"done in {time.monotonic() - started:.0f} s; the report: {result.where}")
