"""Settings of a sweep: the grid, what every run starts from, and how students are probed."""

from typing import Any

from pydantic import Field

from echostill.eval.datasets import TaskSettings
from echostill.platform.config import StageConfig, execution
from echostill.platform.names import Name


class SweepConfig(StageConfig):
    """A grid of distillations."""

    name: Name = Field("sweep", description="Name of the sweep.")
    base: str | dict[str, Any] = Field(
        description="What every run starts from: a distillation's configuration file, or its keys."
    )
    grid: dict[str, tuple[Any, ...]] = Field(
        min_length=1, description="Values to try, by dotted key of the distillation."
    )
    task: TaskSettings | None = Field(
        None, description="A benchmark that each student is probed on, frozen."
    )
    probe_seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    test_share: float = Field(0.4, gt=0, lt=1, description="Share of the task that is tested on.")
    neighbours: int = Field(10, ge=1, description="Neighbours of the k-NN probe.")
    at_once: int | None = execution(None, "Runs side by side; default as many as fit.", ge=1)
