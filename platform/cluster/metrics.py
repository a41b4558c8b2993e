"""What workers count for Prometheus: each metric once, by name, and how to set it through Ray.

Ray's agent on each node exports them (``ray start --metrics-export-port``), with ``ray_`` before
the name and ``_total`` behind that of a counter. The service has its own metrics (``/metrics`` of
``echostill serve``). The rules and the dashboard in infra/monitoring read these names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class WorkerMetric:
    """A metric: what it is called, how it moves, and its labels."""

    name: str
    kind: Literal["counter", "gauge"]
    description: str
    labels: tuple[str, ...]

    @property
    def exported(self) -> str:
        """The name under which Prometheus reads it."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


STAGE = ("stage", "device")
ROWS = WorkerMetric("echostill_rows", "counter", "Rows written to tables.", STAGE)
QUARANTINED = WorkerMetric("echostill_quarantined", "counter", "Rows quarantined.", STAGE)
SECONDS = WorkerMetric(
    "echostill_seconds",
    "counter",
    "Seconds of workers by phase; 'idle' is the wait for the next shard.",
    (*STAGE, "phase"),
)
PACE = WorkerMetric("echostill_rows_per_second", "gauge", "Pace of the last shard.", STAGE)

RUN = ("run",)
LOSS = WorkerMetric("echostill_training_loss", "gauge", "Loss of the last logged step.", RUN)
STEP = WorkerMetric("echostill_training_step", "gauge", "The last logged step.", RUN)
WEIGHT_SPREAD = WorkerMetric(
    "echostill_training_weight_spread",
    "gauge",
    "Standard deviation of the consistency weight over the last logged batch.",
    RUN,
)
IMAGES = WorkerMetric(
    "echostill_training_images_per_second", "gauge", "Images per second since the start.", RUN
)
WAIT_SHARE = WorkerMetric(
    "echostill_training_data_wait_share",
    "gauge",
    "Share of the time in which a worker waited for batches; the largest of the workers.",
    RUN,
)
NON_FINITE = WorkerMetric(
    "echostill_training_non_finite", "counter", "Runs stopped by a non-finite loss.", RUN
)

SHARDS = (ROWS, QUARANTINED, SECONDS, PACE)
TRAINING = (LOSS, STEP, WEIGHT_SPREAD, IMAGES, WAIT_SHARE, NON_FINITE)


class MetricPublisher:
    """Metrics of one process, with labels that do not change."""

    def __init__(self, metrics: Sequence[WorkerMetric], **labels: str) -> None:
        """Register metrics with Ray; made where Ray has connected.

        Args:
            metrics: What this process sets.
            labels: Labels that every value gets.
        """
        from ray.util.metrics import Counter, Gauge

        kinds = {"counter": Counter, "gauge": Gauge}
        self._metrics: dict[WorkerMetric, Any] = {}
        for metric in metrics:
            made = kinds[metric.kind](metric.name, metric.description, metric.labels)
            made.set_default_tags(labels)
            self._metrics[metric] = made

    def add(self, metric: WorkerMetric, value: float, **labels: str) -> None:
        """Add to a counter; nothing happens where there is nothing to add."""
        if value > 0:
            self._metrics[metric].inc(value, tags=labels)

    def set(self, metric: WorkerMetric, value: float) -> None:
        """Set a gauge."""
        self._metrics[metric].set(value)
