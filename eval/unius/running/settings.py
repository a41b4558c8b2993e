"""Settings of a run of the benchmark, and how they are read.

A file for `echostill bench run` has these keys and no sections. A file of the pipeline gives the
keys that its stages share: store, teacher, student.
"""

from collections.abc import Sequence

from pydantic import Field, field_validator

from echostill.eval.unius.protocols.data import Kind
from echostill.eval.unius.protocols.settings import Protocol, ProtocolSettings
from echostill.platform.computing.settling import PrecisionConfig
from echostill.platform.config import (
    apply_overrides,
    execution,
    read_document,
    stage_values,
    validate,
)
from echostill.platform.names import Name


class BenchConfig(PrecisionConfig):
    """A run of the benchmark: which models on which prepared sets, and by which protocols."""

    name: Name = Field("default", description="Name of the results and of their report.")
    prepared: str = execution("runs/bench", "Folder or URI of the prepared sets; workers read it.")
    sets: tuple[str, ...] = execution((), "Prepared sets; default all in the folder.")
    kinds: tuple[Kind, ...] = execution(
        ("classification", "segmentation"),
        "Kinds of tasks: classification, segmentation, detection.",
        min_length=1,
    )
    models: tuple[str, ...] = execution(
        (),
        "teacher, untrained (the student), students (all families of runs in the store), a run or "
        "a family of runs, constant, thumbnail, baselines, a baseline's name, unet, or timm:NAME. "
        "Default: teacher, students, untrained, constant, thumbnail.",
    )
    weights: dict[str, str] = execution({}, "Weights files of baselines, by the model's name.")
    seeds: tuple[int, ...] = execution(
        (0,), "Seeds; the runs of a family take turns with them.", min_length=1
    )
    protocols: tuple[Protocol, ...] = execution(
        ("frozen",), "frozen, published, or both.", min_length=1
    )
    protocol: ProtocolSettings = ProtocolSettings()
    workers: int | None = execution(
        None, "Concurrent tasks; default one per GPU, without GPUs one per CPU.", ge=1
    )

    @field_validator("seeds", "sets", "models", "protocols", "kinds")
    @classmethod
    def _differ(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) < len(values):
            raise ValueError("something is listed more than once")
        return values


def load_bench(path: str | None, overrides: Sequence[str]) -> BenchConfig:
    """Read the configuration of a run: a file, then ``key=value`` texts.

    Raises:
        UsageError: A key is unknown, or a value is not what the key takes.
    """
    values = stage_values(BenchConfig, "bench", read_document(path))
    return validate(BenchConfig, apply_overrides(values, overrides, None))
