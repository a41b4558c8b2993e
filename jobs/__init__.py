"""Stages by name, the whole pipeline, sweeps, the command line; one script per stage for Ray."""

from typing import TYPE_CHECKING

from echostill.platform.lazy import lazy

if TYPE_CHECKING:
    from echostill.jobs.pipeline import run_pipeline
    from echostill.jobs.stages import find_stage
    from echostill.jobs.sweeps.settings import SweepConfig
    from echostill.jobs.sweeps.sweep import sweep

_HOMES = {
    "SweepConfig": "sweeps.settings",
    "find_stage": "stages",
    "run_pipeline": "pipeline",
    "sweep": "sweeps.sweep",
}

__all__ = ["SweepConfig", "find_stage", "run_pipeline", "sweep"]

__getattr__ = lazy(__name__, _HOMES)
