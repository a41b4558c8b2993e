"""What Ray Train's controller does with each report of the workers.

A module of its own: it imports Ray, which only a training needs, and not before it has connected.
"""

import logging
from collections.abc import Sequence
from typing import Any

from ray.train import UserCallback

from echostill.platform.progress import Channel
from echostill.platform.training.tracking import Rows, Tracker


class TrackingCallback(UserCallback):  # type: ignore[misc]  # Ray's class is read without types
    """Runs on Ray Train's controller: passes each report on to MLflow and to the progress bar."""

    def __init__(self, logged: Sequence[tuple[Rows, Tracker]], channel: Channel) -> None:
        """Watch a training.

        Args:
            logged: For each run of it, what it takes of the logged rows, and its record.
            channel: Far end of the progress bar.
        """
        self._logged, self._channel = logged, channel

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Record the first worker's new rows of metrics, and what every worker uses."""
        first = metrics[0]
        usage: dict[str, float] = {"step": first["step"]}
        for rank, report in enumerate(metrics):
            usage |= {f"system/worker_{rank}/{key}": v for key, v in report["usage"].items()}
        usage["system/workers"] = len(metrics)
        for rows, tracker in self._logged:
            try:
                tracker.metrics([*rows(first["rows"]), usage])
            except Exception as error:  # a record that cannot be reached must not end a training
                logging.getLogger(__name__).warning("MLflow did not take the metrics: %s", error)
        note = f"loss {first['rows'][-1]['loss']:.4f}" if first["rows"] else ""
        self._channel.send(int(first["step"]), note)
