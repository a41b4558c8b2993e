"""What becomes of each report of the workers: on Ray Train's controller, or where it was made.

A module of its own: it imports Ray, which only a training needs, and not before it has connected.
"""

import logging
from collections.abc import Sequence
from typing import Any

from ray.train import UserCallback

from echostill.platform.cluster import metrics as prometheus
from echostill.platform.progress import Sends
from echostill.platform.training.tracking import Logged

_ROW = {"loss": prometheus.LOSS, "step": prometheus.STEP, "weight_std": prometheus.WEIGHT_SPREAD}


class TrackingCallback(UserCallback):  # type: ignore[misc]  # Ray's class is read without types
    """Passes each report on to MLflow, Prometheus and the bar; runs on Ray Train's controller."""

    def __init__(self, logged: Sequence[Logged], channel: Sends) -> None:
        """Watch a training.

        Args:
            logged: For each run of it, what it takes of the logged rows, and its record.
            channel: Far end of the progress bar.
        """
        self._logged, self._channel = logged, channel
        self._metrics: dict[str, prometheus.MetricPublisher] = {}

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Record the first worker's new rows of metrics, and what every worker uses."""
        first = metrics[0]
        usage: dict[str, float] = {"step": first["step"]}
        for rank, report in enumerate(metrics):
            usage |= {f"system/worker_{rank}/{key}": v for key, v in report["usage"].items()}
        usage["system/workers"] = len(metrics)
        for one in self._logged:
            rows = one.rows(first["rows"])
            self._publish(one.name, rows, metrics)
            try:
                one.tracker.metrics([*rows, usage])
            except Exception as error:  # a record that cannot be reached must not end a training
                logging.getLogger(__name__).warning("MLflow did not take the metrics: %s", error)
        note = f"loss {first['rows'][-1]['loss']:.4f}" if first["rows"] else ""
        if first["usage"]:
            pace, wait = (first["usage"][key] for key in ("images_per_second", "data_wait_share"))
            note += f", {pace:.0f} images/s, {wait:.0%} of the time waiting for images"
        self._channel.send(int(first["step"]), note)

    def _publish(
        self, name: str, rows: list[dict[str, float]], reports: list[dict[str, Any]]
    ) -> None:
        """Set what Prometheus reads, from the last logged row and what every worker reports."""
        if name not in self._metrics:
            self._metrics[name] = prometheus.MetricPublisher(prometheus.TRAINING, run=name)
        metrics = self._metrics[name]
        for key, value in (rows[-1] if rows else {}).items():
            if key in _ROW:
                metrics.set(_ROW[key], value)
        usages = [report["usage"] for report in reports if report["usage"]]
        if usages:
            metrics.set(prometheus.IMAGES, usages[0]["images_per_second"])
            metrics.set(prometheus.WAIT_SHARE, max(one["data_wait_share"] for one in usages))
        stopped = any(report.get("non_finite") for report in reports)
        metrics.add(prometheus.NON_FINITE, float(stopped))
