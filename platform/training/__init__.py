"""The training loop on Ray Train: batches, optimisation, checkpoints, tracking."""

from typing import TYPE_CHECKING

from echostill.platform.lazy import lazy

if TYPE_CHECKING:
    from echostill.platform.training.batches import replay
    from echostill.platform.training.settings import TrainingSettings

_HOMES = {"TrainingSettings": "settings", "replay": "batches"}

__all__ = ["TrainingSettings", "replay"]

__getattr__ = lazy(__name__, _HOMES)
