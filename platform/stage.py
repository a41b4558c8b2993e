"""A stage as code: its configuration, the calls that run and plan it, and what they return.

A stage module ends with one record::

    STAGE = Stage(stages.SELECT, SelectConfig, select, plan_select)

and its calls are decorated with :func:`logged`, so that every way of running a stage (a command,
`echostill run`, a job, a Python call) leaves the same events in the store.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from echostill.platform.config import StageConfig, load
from echostill.platform.preflight.checks import check_stage, check_writable, read_only
from echostill.platform.shards.events import stage_run
from echostill.platform.stages import StageInfo
from echostill.platform.tables import lease
from echostill.platform.tables.store import Store

Counts = dict[str, int | float]
ConfigType = TypeVar("ConfigType", bound=StageConfig)
Call = TypeVar("Call", bound=Callable[..., "StageResult"])


@dataclass(frozen=True)
class StageResult:
    """What a stage made; ``str()`` says it in a sentence.

    Attributes:
        stage: Name of the stage.
        made: What was made, as named in the store, such as ``coresets/default``.
        where: Path or URI of the result.
        counts: Numbers of the result by name, such as ``rows_out`` or ``selected``.
        sentence: What was done, in words.
        already_done: Whether it was there before, and nothing was computed.
    """

    stage: str
    made: tuple[str, ...]
    where: str
    counts: Counts
    sentence: str
    already_done: bool = False

    def __str__(self) -> str:
        return self.sentence


@dataclass
class Plan:
    """What a stage would do, for ``--dry-run``: labelled lines in words."""

    stage: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def add(self, label: str, text: str) -> None:
        """Add a line."""
        self.lines.append((label, text))

    def describe(self) -> str:
        """Return the plan as text."""
        width = max((len(label) for label, _ in self.lines), default=0)
        body = "\n".join(f"  {label:<{width}}  {text}" for label, text in self.lines)
        return f"{self.stage}\n{body}"


@dataclass(frozen=True)
class Stage(Generic[ConfigType]):
    """The code of a stage.

    Attributes:
        info: Its row in the table of stages.
        config: Class of its configuration.
        run: Runs it; takes the configuration and ``overwrite``.
        plan: Says what ``run`` would do with the same ``overwrite``, and refuses what it would.
        retry: Tries the rows in its quarantine again; None where it has no quarantine.
    """

    info: StageInfo
    config: type[ConfigType]
    run: Callable[..., StageResult]
    plan: Callable[..., Plan]
    retry: Callable[[ConfigType], StageResult] | None = None

    def load(self, path: str | None = None, overrides: tuple[str, ...] = ()) -> ConfigType:
        """Read and validate its configuration: a YAML file, then ``key=value`` texts."""
        return load(self.config, self.info.section, path, overrides)

    def dry_run(self, config: ConfigType, *, overwrite: bool = False) -> str:
        """Say what :attr:`run` would do, after the checks that it makes too.

        A store that cannot be written can still be read: the plan says that the run is refused.
        """
        check_stage(self.info, config)
        plan = self.plan(config, overwrite=overwrite)
        if problem := read_only(Store(config.store), self.info.writes):
            plan.add("refused", problem)
        return plan.describe()


def logged(info: StageInfo, mode: str = "run") -> Callable[[Call], Call]:
    """Make a stage's call write its start, its end and what it made to the store's event log.

    Before anything else, what the stage depends on outside of this process is checked, and that no
    other job works on the store.

    Args:
        info: The stage.
        mode: ``run`` or ``retry``.
    """

    def decorate(call: Call) -> Call:
        @functools.wraps(call)
        def run(config: StageConfig, *arguments: Any, **options: Any) -> StageResult:
            check_stage(info, config)
            store = Store(config.store)
            check_writable(store, info.writes)
            with (
                lease.hold(store.storage, info.name, result_of(info, config), alone=info.alone),
                stage_run(
                    store.events(),
                    info.name,
                    functools.partial(lease.is_store, store.storage),
                    mode=mode,
                ) as events,
            ):
                result = call(config, *arguments, **options)
                store.record_format()
                events.outcome |= outcome(result)
            return result

        return cast(Call, run)

    return decorate


def result_of(info: StageInfo, config: StageConfig) -> str:
    """Return the folder of the store that a stage writes its result into."""
    name = getattr(config, "name", None)
    return f"{info.writes}/{name}" if isinstance(name, str) else info.writes


def outcome(result: StageResult) -> dict[str, Any]:
    """Return what the ``finished`` event says of a result."""
    values: dict[str, Any] = {**result.counts, "made": list(result.made)}
    return {**values, "already_done": result.already_done, "message": result.sentence}
