"""Which models are evaluated: the teacher, students of finished runs, the untrained student.

A model that was trained several times, with a seed each, is one candidate with several trainings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field

from echostill.eval.efficiency import efficiency
from echostill.eval.names import DISTILLED, MIM_ONLY, TEACHER, UNTRAINED
from echostill.platform.config import Config, ModelsConfig
from echostill.platform.errors import UsageError, nearest
from echostill.platform.models import Encoder, create_encoder
from echostill.platform.models.weights import Weights, find_run, find_teacher
from echostill.platform.names import Name
from echostill.platform.tables.storage import sha256
from echostill.platform.tables.store import Store, read_configuration, read_manifest

TEACHER_RUN = "teacher"  # of `echostill pretrain`, which `find_teacher` looks for
Model = tuple[str, str]  # label of the candidate, name of the run


class Candidate(Config):
    """A model to evaluate: the teacher, training runs of one student, or the untrained student."""

    label: str
    kind: Literal["teacher", "runs", "untrained"] = "runs"
    runs: tuple[Name, ...] = Field((), description="Runs, one per training seed.")


class ComingRun(NamedTuple):
    """A run that an earlier stage of the same job will make: what is known of it before."""

    model: str
    image_size: int | None  # None is the model's own
    role: str


@dataclass(frozen=True)
class Unit:
    """One training of a candidate on one task."""

    candidate: str
    task: str
    seed: int  # of the untrained model's weights, and of what fine-tuning draws
    run: str
    weights: Weights | None  # None is the untrained model, or one whose run is still to come
    model: str
    image_size: int | None = None  # of a model without weights; None is its own
    training: int = 0  # number of the training, from 0
    role: str = UNTRAINED

    @property
    def of(self) -> Model:
        """Which model it is about."""
        return self.candidate, self.run

    @property
    def file(self) -> str:
        """Name of the file with the unit's results."""
        key = f"{self.candidate}\n{self.task}\n{self.run}\n{self.seed}"
        return f"units/{sha256(key.encode())[:16]}.parquet"

    def load(self) -> Encoder:
        """Load the model; the untrained one is initialised from the seed, like a student."""
        if self.weights is not None:
            return self.weights.load().requires_grad_(True)
        torch.manual_seed(self.seed)
        return create_encoder(self.model, image_size=self.image_size)

    def build(self) -> Encoder:
        """Build the model with fresh weights."""
        if self.weights is not None:
            return self.weights.build()
        return create_encoder(self.model, image_size=self.image_size)


def default_candidates(
    store: Store, coming: Mapping[str, ComingRun] | None = None
) -> tuple[Candidate, ...]:
    """Return the teacher, every student that was distilled in the store, the untrained student.

    Students that are still to come count as distilled.
    """
    students: dict[str, list[str]] = {}
    expected = {run for run, about in (coming or {}).items() if about.role != TEACHER}
    for run in sorted({*store.run_names(), *expected}):
        manifest = read_manifest(store.run(run))
        if run in expected or (manifest is not None and manifest["stage"] == "distill"):
            students.setdefault(run.rpartition("-")[0], []).append(run)
    return (
        Candidate(label="teacher", kind="teacher"),
        *(Candidate(label=f"{name} student", runs=tuple(r)) for name, r in students.items()),
        Candidate(label="untrained student", kind="untrained"),
    )


def find_units(
    config: ModelsConfig,
    store: Store,
    candidates: Sequence[Candidate],
    tasks: Sequence[str],
    seeds: Sequence[int],
    coming: Mapping[str, ComingRun] | None = None,
) -> list[Unit]:
    """List what is evaluated: every training of every candidate on every task.

    The teacher was trained once, a student once per run; the untrained student is initialised once
    per seed.

    Args:
        config: Names the teacher and the untrained student.
        store: Where the runs are.
        candidates: What is evaluated; where there are none, the default ones of the store.
        tasks: Names of the tasks.
        seeds: Of the untrained student's weights and of fine-tuning; runs take turns with them.
        coming: Runs that are made before the evaluation; a name without weights until then.

    Raises:
        UsageError: Weights or a run are missing, or do not fit.
    """
    units = []
    coming = coming or {}
    for candidate in candidates or default_candidates(store, coming):
        known: dict[str, Weights | None] = {}
        untrained = ComingRun(config.student, config.student_image_size, UNTRAINED)
        if candidate.kind == "teacher":
            pretrained = config.teacher.weights is None and TEACHER_RUN in coming
            known[""] = None if pretrained else find_teacher(config)
            untrained = coming.get(TEACHER_RUN, untrained)
        elif candidate.kind == "untrained":
            known[""] = None
        elif not candidate.runs:
            raise UsageError(f"candidate '{candidate.label}' has no runs: list them under runs.")
        for run in candidate.runs:
            if run in coming:
                known[run] = None
                continue
            storage = store.run(run)
            if read_manifest(storage) is None:
                names = [*store.run_names(), *coming]
                raise UsageError(
                    f"no finished run '{run}' in '{store.root}'.{nearest(run, names)} "
                    "Run `echostill distill` first."
                )
            known[run] = find_run(storage)
        role = _role(candidate, store, coming)
        trained = list(known.items())
        if candidate.kind == "untrained":
            trained *= len(seeds)
        units += [
            Unit(
                candidate.label,
                task,
                seeds[number % len(seeds)],
                run,
                weights,
                coming.get(run, untrained).model if weights is None else weights.model,
                coming.get(run, untrained).image_size if weights is None else weights.image_size,
                number,
                role,
            )
            for task in tasks
            for number, (run, weights) in enumerate(trained)
        ]
    return units


def _role(candidate: Candidate, store: Store, coming: Mapping[str, ComingRun]) -> str:
    """Return what a candidate is for the comparisons."""
    if candidate.kind == "teacher":
        return TEACHER
    if candidate.kind == "untrained":
        return UNTRAINED
    expected = {coming[run].role for run in candidate.runs if run in coming}
    if expected:
        return DISTILLED if DISTILLED in expected else MIM_ONLY
    students = [read_configuration(store.run(run)).get("students") for run in candidate.runs]
    objectives = [student.get("objective", {}) for own in students for student in own or []]
    if objectives:
        return DISTILLED if any(each.get("distil") for each in objectives) else MIM_ONLY
    return DISTILLED if candidate.label.lower().startswith("distil") else MIM_ONLY


def build_models(units: Sequence[Unit]) -> dict[Model, Encoder]:
    """Build every model once, without weights."""
    with torch.device("meta"):
        return {unit.of: unit.build() for unit in units}


def weights_identity(units: Sequence[Unit]) -> dict[str, str]:
    """Return what of the candidates' weights a fingerprint depends on."""
    found: dict[str, str] = {}
    for unit in units:
        role = f"{unit.candidate}/{unit.run}"
        if unit.weights is not None and unit.run:  # its file says its model and size
            found[role] = unit.weights.digest
        elif unit.weights is not None:
            found |= unit.weights.identity(role)
    return found


def candidates_with_costs(
    units: Sequence[Unit], sizes: Mapping[Model, int]
) -> list[dict[str, Any]]:
    """Describe each candidate and its cost; each model is timed once, for all weights."""
    costs: dict[tuple[str, int], dict[str, Any]] = {}
    described: dict[str, dict[str, Any]] = {}
    for unit in units:
        key = (unit.model, sizes[unit.of])
        if key not in costs:
            costs[key] = efficiency(unit.build())
        entry = described.setdefault(
            unit.candidate,
            {
                "label": unit.candidate,
                "role": unit.role,
                "model": unit.model,
                "runs": [],
                **costs[key],
            },
        )
        if unit.run and unit.run not in entry["runs"]:
            entry["runs"].append(unit.run)
    return list(described.values())
