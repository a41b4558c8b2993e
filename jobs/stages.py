"""The stages by name: what the command line, the pipeline and submitted jobs call."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from echostill.platform.config import StageConfig, load
from echostill.platform.errors import UsageError, nearest
from echostill.platform.shards.events import EventLog
from echostill.platform.tables.store import Plan, Store


@dataclass(frozen=True)
class Stage:
    """Where a stage's configuration, plan and call are found."""

    module: str
    config: str
    call: str

    def load(self) -> tuple[type[StageConfig], Callable[..., Any], Callable[..., Plan]]:
        """Import the stage's folder and return its configuration class, its call and its plan."""
        module = import_module(self.module)
        return (
            getattr(module, self.config),
            getattr(module, self.call),
            getattr(module, f"plan_{self.call}"),
        )

    def load_retry(self) -> Callable[..., str] | None:
        """Return the call that tries the stage's quarantine again; None where it has none."""
        call: Callable[..., str] | None = getattr(
            import_module(self.module), f"retry_{self.call}", None
        )
        return call


REGISTRY = {
    "ingest": Stage("echostill.curation.ingestion.stage", "IngestConfig", "ingest"),
    "pretrain": Stage("echostill.distill.pretraining", "PretrainConfig", "pretrain"),
    "score": Stage("echostill.curation.scoring.stage", "ScoreConfig", "score"),
    "duplicates": Stage("echostill.curation.copies.stage", "DuplicatesConfig", "find_duplicates"),
    "select": Stage("echostill.curation.selection.stage", "SelectConfig", "select"),
    "distill": Stage("echostill.distill.distillation", "DistillConfig", "distill"),
    "evaluate": Stage("echostill.eval.evaluation", "EvaluateConfig", "evaluate"),
    "report": Stage("echostill.eval.reporting.stage", "ReportConfig", "report"),
}


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
    config_class, call, plan = REGISTRY[name].load()
    config = load(config_class, name, config_file, overrides)
    if dry_run:
        return plan(config).describe()
    started = time.monotonic()
    with _logged(name, config):
        summary = call(config, overwrite=overwrite)
    return f"{name}: {summary} ({time.monotonic() - started:.1f} s)"


@contextmanager
def _logged(name: str, config: StageConfig) -> Iterator[None]:
    """Log the start and the end of a stage; those with shards log more, and do it themselves.

    Wrong usage is no event: it must not make a store where there is none.
    """
    store = Store(config.store)
    if REGISTRY[name].load_retry() is not None or not store.storage.exists():
        yield
        return
    log, started = EventLog(store.events(), name), time.monotonic()
    log.add("started")
    try:
        yield
    except BaseException as error:
        failed = isinstance(error, Exception)
        said = {"error": type(error).__name__, "message": str(error)} if failed else {}
        log.add("failed" if failed else "interrupted", **said)
        raise
    log.add("finished", seconds=round(time.monotonic() - started, 3))


def retry_stage(name: str, config_file: str | None, overrides: Sequence[str]) -> str:
    """Load a stage's configuration and try what lies in its quarantine again.

    Returns:
        What was done, in words.

    Raises:
        UsageError: There is no such stage, or it keeps no quarantine.
    """
    if name not in REGISTRY:
        raise UsageError(f"no stage '{name}'.{nearest(name, list(REGISTRY))}")
    call = REGISTRY[name].load_retry()
    if call is None:
        raise UsageError(
            f"'{name}' keeps no quarantine: ingest and score do. An interrupted '{name}' goes on "
            "with its own command."
        )
    config = load(REGISTRY[name].load()[0], name, config_file, overrides)
    started = time.monotonic()
    return f"{name}: {call(config)} ({time.monotonic() - started:.1f} s)"
