"""From a grid of settings to distillation runs: pure, and checked before anything runs."""

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from echostill.distill.settings import DistillConfig
from echostill.platform.config import result_relevant, validate
from echostill.platform.errors import UsageError
from echostill.platform.tables.storage import sha256

OBJECTIVE = "objective"


@dataclass(frozen=True)
class TrialRun:
    """One distillation run of a trial: a configuration with one student and one seed."""

    name: str
    config: DistillConfig


@dataclass(frozen=True)
class Trial:
    """One combination of the grid's values, and the runs it takes."""

    digest: str
    assignment: dict[str, Any]
    runs: tuple[TrialRun, ...]

    @property
    def label(self) -> str:
        """The assignment in words, by the last part of each key."""
        return ", ".join(
            f"{key.rpartition('.')[2]}={json.dumps(value)}"
            for key, value in self.assignment.items()
        )


def expand(name: str, base: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> list[Trial]:
    """Combine the grid's values and build each trial's configuration.

    A trial's runs are named by a digest of its resolved configuration: a grid that grows keeps the
    runs it has, and one whose base changes makes new ones.

    Args:
        name: Name of the sweep, with which its runs' names begin.
        base: The distillation's own keys, as a configuration file gives them.
        grid: Values by dotted key of the distillation. A number steps into a list; a key below
            ``objective`` is set in every student.

    Raises:
        UsageError: A key or value is no distillation setting, or two combinations are the same.
    """
    trials: list[Trial] = []
    for values in itertools.product(*grid.values()):
        assignment = dict(zip(grid, values, strict=True))
        document: dict[str, Any] = copy.deepcopy(dict(base))
        document.setdefault("students", [{}])
        for key, value in assignment.items():
            for path in _paths(key, document["students"]):
                assign(document, path, value)
        config = validate(DistillConfig, document)
        digest = _digest(config)
        clash = next((trial for trial in trials if trial.digest == digest), None)
        if clash is not None:
            raise UsageError(f"two combinations of the grid are the same: {clash.label}.")
        trials.append(Trial(digest, assignment, _runs(name, digest, config)))
    return trials


def assign(document: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a value deep in plain values; a number steps into a list, a missing mapping is made.

    Raises:
        UsageError: The path goes through something that is neither.
    """
    dotted = ".".join(path)
    node: Any = document
    for place, part in enumerate(path):
        last = place == len(path) - 1
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise UsageError(f"grid key '{dotted}': '{part}' is not one of {len(node)} items.")
            if last:
                node[int(part)] = value
            else:
                node = node[int(part)]
        elif isinstance(node, dict):
            if last:
                node[part] = value
            else:
                node = node.setdefault(part, {})
        else:
            raise UsageError(
                f"grid key '{dotted}' goes into '{path[place - 1]}', which is a value."
            )


def _paths(key: str, students: Sequence[Any]) -> list[list[str]]:
    parts = key.split(".")
    if parts[0] != OBJECTIVE:
        return [parts]
    return [["students", str(place), *parts] for place in range(len(students))]


def _digest(config: DistillConfig) -> str:
    return sha256(json.dumps(result_relevant(config), sort_keys=True).encode())[:8]


def _runs(name: str, digest: str, config: DistillConfig) -> tuple[TrialRun, ...]:
    runs = []
    for run in config.runs():
        alone = config.alone(run)
        (student,) = alone.students
        named = student.model_copy(update={"name": f"{name}-{digest}-{student.name}"})
        changes = {"students": (named,), "progress": False}
        runs.append(TrialRun(f"{named.name}-{run.seed}", alone.model_copy(update=changes)))
    return tuple(runs)
