"""The stages as code: found by name, imported when used, run and retried in one way."""

import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from echostill.platform.errors import UsageError, nearest
from echostill.platform.lazy import loading
from echostill.platform.stage import Stage, StageResult
from echostill.platform.stages import BESIDE, STAGES

# Each module ends with the stage's record, STAGE.
HOMES = {
    "ingest": "echostill.curation.ingestion.stage",
    "pretrain": "echostill.distill.pretraining",
    "score": "echostill.curation.scoring.stage",
    "duplicates": "echostill.curation.copies.stage",
    "select": "echostill.curation.selection.stage",
    "distill": "echostill.distill.distillation",
    "evaluate": "echostill.eval.evaluation",
    "report": "echostill.eval.reporting.stage",
    "cache": "echostill.distill.cache.stage",
    "sweep": "echostill.jobs.sweeps.sweep",
}


def find_stage(name: str) -> Stage[Any]:
    """Import a stage by its name.

    Raises:
        UsageError: There is no such stage; names the nearest.
    """
    known = [*STAGES, *BESIDE]
    if name not in known:
        raise UsageError(f"no stage '{name}'.{nearest(name, known)}")
    with loading():
        stage: Stage[Any] = import_module(HOMES[name]).STAGE
    return stage


def run_stage(
    name: str,
    config_file: str | None,
    overrides: Sequence[str],
    *,
    dry_run: bool = False,
    overwrite: bool = False,
) -> str:
    """Load a stage's configuration and run or plan it.

    Returns:
        What was done, or would be done, in words.
    """
    stage = find_stage(name)
    config = stage.load(config_file, tuple(overrides))
    if dry_run:
        return stage.dry_run(config, overwrite=overwrite)
    started = time.monotonic()
    return said(name, stage.run(config, overwrite=overwrite), started)


def retry_stage(name: str, config_file: str | None, overrides: Sequence[str]) -> str:
    """Load a stage's configuration and try what lies in its quarantine again.

    Returns:
        What was done, in words.

    Raises:
        UsageError: There is no such stage, or it keeps no quarantine.
    """
    stage = find_stage(name)
    if stage.retry is None:
        raise UsageError(
            f"'{name}' keeps no quarantine: ingest and score do. To continue an interrupted "
            f"'{name}', run its own command again."
        )
    started = time.monotonic()
    return said(name, stage.retry(stage.load(config_file, tuple(overrides))), started)


def said(name: str, result: StageResult, started: float) -> str:
    """Say a stage's result on one line, with the time since ``started`` (monotonic)."""
    return f"{name}: {result} ({time.monotonic() - started:.1f} s)"
