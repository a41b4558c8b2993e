"""What Ray Train's controller does with a report, without a cluster."""

import pytest

from echostill.platform.cluster import metrics
from echostill.platform.training.tracking import Logged


class Recorded:
    """Stands for the metrics of Ray, which need one that runs."""

    made = []

    def __init__(self, known, **labels):
        self.known, self.labels, self.values = known, labels, {}
        self.made.append(self)

    def add(self, metric, value):
        assert metric in self.known
        if value > 0:
            self.values[metric.exported] = self.values.get(metric.exported, 0) + value

    def set(self, metric, value):
        assert metric in self.known
        self.values[metric.exported] = value


class Quiet:
    def metrics(self, rows):
        self.rows = rows

    def send(self, *progress):
        self.progress = progress


@pytest.fixture
def callback(monkeypatch):
    pytest.importorskip("ray.train")
    from echostill.platform.training.callback import TrackingCallback

    Recorded.made.clear()
    monkeypatch.setattr(metrics, "MetricPublisher", Recorded)
    students = [
        Logged(lambda rows, name=name: [row[name] for row in rows], Quiet(), name)
        for name in ("distilled", "MIM-only")
    ]
    return TrackingCallback(students, Quiet())


def usage(wait):
    return {"images_per_second": 8.0, "data_wait_share": wait}


def test_each_run_has_the_last_row_and_the_slowest_worker(callback):
    rows = [
        {"distilled": {"step": step, "loss": loss, "weight_std": 0.2}, "MIM-only": {"step": step,
         "loss": 2 * loss}} for step, loss in ((10, 0.9), (20, 0.5))
    ]  # fmt: skip
    first = {"rows": [{**row, "loss": 0.0} for row in rows], "step": 20, "usage": usage(0.1)}
    callback.after_report(None, [first, {"rows": [], "step": 20, "usage": usage(0.4)}], None)
    one, other = Recorded.made
    assert (one.labels, other.labels) == ({"run": "distilled"}, {"run": "MIM-only"})
    assert one.values == {
        "ray_echostill_training_step": 20,
        "ray_echostill_training_loss": 0.5,
        "ray_echostill_training_weight_spread": 0.2,
        "ray_echostill_training_images_per_second": 8.0,
        "ray_echostill_training_data_wait_share": 0.4,
    }
    assert other.values["ray_echostill_training_loss"] == 1.0
    assert "ray_echostill_training_weight_spread" not in other.values


def test_a_run_that_ends_non_finite_is_counted_once(callback):
    bad = {"rows": [], "step": 30, "usage": {}, "non_finite": True}
    callback.after_report(None, [bad, bad], None)
    assert [one.values for one in Recorded.made] == [{metrics.NON_FINITE.exported: 1.0}] * 2
