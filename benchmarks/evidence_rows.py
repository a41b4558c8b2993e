"""Rows of a long measurement: one per arm and seed, kept when done, so that a restart goes on.

A row says what it depends on. One that depends on something else than the plan does now is not
used, and is made anew.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """What was measured of one arm with one seed."""

    predictions: dict[str, np.ndarray]  # by task: the predicted class of each image, out of fold
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """Work that is done in one piece: arms that are trained together, with one seed.

    Attributes:
        experiment: Name of the experiment.
        depends: By arm, what its row depends on, as plain values.
        seed: Seed of the training.
        kind: Units of one kind take equally long per step.
        steps: Steps of its training.
        run: Does the work and returns a row for each arm.
        pace: Trains for so many steps, to see how long one takes.
    """

    experiment: str
    depends: dict[str, Any]
    seed: int
    kind: str
    steps: int
    run: Callable[[], dict[str, Row]]
    pace: Callable[[int], None] | None = None


class Rows:
    """The rows in a folder: predictions and facts in one .npz each, written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, experiment: str, arm: str, seed: int) -> Path:
        """File of a row."""
        name = arm.replace("/", " - ").replace(" ", "_")
        return self.folder / experiment / name / f"{seed}.npz"

    def read(self, experiment: str, arm: str, seed: int, depends: Any) -> Row | None:
        """Return a row, or None where there is none that depends on this."""
        path = self.path(experiment, arm, seed)
        if not path.is_file():
            return None
        with np.load(path) as held:
            about = json.loads(str(held["about"]))
            if about["depends"] != digest(depends):
                return None
            names = [name for name in held.files if name != "about"]
            return Row({name: held[name] for name in names}, about["facts"])

    def write(self, unit: Unit, arm: str, row: Row) -> None:
        """Keep a row."""
        path = self.path(unit.experiment, arm, unit.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = json.dumps({"depends": digest(unit.depends[arm]), "facts": row.facts})
        begun = path.with_suffix(f".{os.getpid()}.part")
        with begun.open("wb") as file:
            np.savez_compressed(file, about=np.array(about), **row.predictions)
        begun.replace(path)

    def missing(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the units of which a row is not there."""
        return [
            unit
            for unit in units
            if any(
                self.read(unit.experiment, arm, unit.seed, depends) is None
                for arm, depends in unit.depends.items()
            )
        ]

    def of(self, units: Sequence[Unit]) -> dict[str, dict[int, Row]]:
        """Return the finished rows by arm and seed."""
        found: dict[str, dict[int, Row]] = {}
        for unit in units:
            for arm, depends in unit.depends.items():
                row = self.read(unit.experiment, arm, unit.seed, depends)
                if row is not None:
                    found.setdefault(arm, {})[unit.seed] = row
        return found


def digest(value: Any) -> str:
    """Digest of plain values."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def estimate(units: Sequence[Unit], paces: dict[str, float]) -> float:
    """Return the seconds that units will take at so many seconds per step of each kind."""
    return sum(unit.steps * paces.get(unit.kind, 0.0) for unit in units)


def measure_paces(units: Sequence[Unit], known: dict[str, float], steps: int = 4) -> None:
    """Add the seconds per step of every kind of unit that is not known yet."""
    for unit in units:
        if unit.pace is not None and unit.kind not in known:
            unit.pace(1)  # what is only done once is not counted
            started = time.perf_counter()
            unit.pace(steps)
            known[unit.kind] = (time.perf_counter() - started) / steps


def complete(rows: Rows, units: Sequence[Unit], say: Callable[[str], None] = print) -> None:
    """Do what is missing; a unit's rows are kept as soon as it is done."""
    todo = rows.missing(units)
    for number, unit in enumerate(todo, start=1):
        started = time.perf_counter()
        for arm, row in unit.run().items():
            rows.write(unit, arm, row)
        took = time.perf_counter() - started
        arms = ", ".join(unit.depends)
        say(f"{unit.experiment} {number}/{len(todo)}: {arms}, seed {unit.seed}: {took:.0f} s")
