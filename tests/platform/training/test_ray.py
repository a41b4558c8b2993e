"""Training on Ray Train: workers that die, a loss that is no number, weights that are spread.

In the process that asked for it too: Ray Train's local mode.
"""

import json
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ray import cloudpickle

from echostill.platform.cluster.nodes import Node
from echostill.platform.cluster.plans import WorkerPlan
from echostill.platform.cluster.waiting import cluster_nodes
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.masking.masks import MaskSettings
from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel, ReconstructionSettings
from echostill.platform.masking.mim_training import MaskedImageTask
from echostill.platform.models import create_encoder
from echostill.platform.progress import Progress
from echostill.platform.tables.storage import Storage
from echostill.platform.training.batches import make_batch
from echostill.platform.training.collective import TrainingWorker
from echostill.platform.training.loop import TrainingSettings, TrainingState, train
from echostill.platform.training.ray import plan, run_training
from echostill.platform.training.staging import StagedImages
from echostill.platform.training.tracking import Logged, Tracker

ALONE = TrainingWorker()


# Ray's workers cannot import a test: what they need of it travels with them.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SIZE, IMAGES = 32, 10
SETTINGS = {
    "steps": 10,
    "batch_size": 5,
    "learning_rate": 0.1,
    "checkpoints": 5,
    "log_every": 1,
    "threads": 1,
    "micro_batch": 2,
}


class Watched(MaskedImageTask):
    """Writes down what it sees, and does something at a step of the first attempt."""

    folder: str
    event: str | None = None

    def prepare(self, batches):
        batch = batches[0]
        ids = [image_id for part in batches for image_id in part.image_ids]
        own = Path(self.folder) / f"{os.getpid()}.jsonl"
        with own.open("a") as file:
            file.write(json.dumps([batch.step, ids]) + "\n")
        mark = Path(self.folder) / "happened"
        if self.event == "die" and batch.step == 5 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.event == "fail" and batch.step == 5 and not mark.exists():
            mark.touch()
            raise ValueError("lost on the way")
        return [None] * len(batches)

    def forward(self, batch, prepared=None):
        loss, metrics = super().forward(batch)
        if batch.step == 5 and self.event in batch.image_ids:  # on one of two workers
            loss = loss * float("inf")
        return loss, metrics


@dataclass(frozen=True)
class Job:
    settings: TrainingSettings
    folder: str
    event: str | None = None
    seed: int = 0

    def task(self):
        torch.manual_seed(self.seed)
        model = MaskedImageModel(
            create_encoder("usfm-micro", image_size=SIZE), DecoderSettings(dim=24)
        )
        masks = MaskSettings().scaled_to(SIZE)
        task = Watched(model, masks, ReconstructionSettings(), "joint", self.seed)
        task.folder, task.event = self.folder, self.event
        return task

    def build(self):
        pixels = np.random.default_rng(0).integers(0, 255, (IMAGES, 1, 40, 40), dtype=np.uint8)
        return self.task(), StagedImages(
            pixels, [f"{row:032x}" for row in range(IMAGES)], ["a"] * IMAGES
        )

    def on_checkpoint(self, weights, state):
        """Nothing besides."""


def job_in(folder, event=None, **change):
    seen = folder / "seen"
    seen.mkdir(parents=True)
    return Job(TrainingSettings(**{**SETTINGS, **change}), str(seen), event)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """History and weights of one process that is left alone."""
    job = job_in(tmp_path_factory.mktemp("calm"))
    task, images = job.build()
    state = train(task, task, images, job.settings, 0, TrainingState(), ALONE, lambda _: None)
    return state.history, task.state_dict()


HERE = WorkerPlan(1, 1.0, 1, here=True)


def run(job, folder, where=None):
    storage = Storage(str(folder / "store" / "runs" / "run"))
    tracker = Tracker.start(None, str(folder / "store"), storage, "run", {"a": 1})
    with Progress("train", job.settings.steps, enabled=False) as bar:
        where = where or plan(job.settings, cluster_nodes())
        return run_training(job, storage, "0" * 64, [Logged(list, tracker)], bar, where), tracker


def same(trained, calm):
    history, weights = calm
    for one, other in zip(trained.history, history, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(trained.weights[name], value, rtol=1e-3, atol=1e-4)


def test_two_workers_one_of_which_dies_end_as_one_that_is_left_alone(ray_cluster, calm, tmp_path):
    job = job_in(tmp_path, "die", workers=2)
    trained, tracker = run(job, tmp_path)
    same(trained, calm)
    images = job.build()[1]
    lines = [
        json.loads(line)
        for path in (tmp_path / "seen").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert len({path.name for path in (tmp_path / "seen").glob("*.jsonl")}) == 4  # 2 attempts of 2
    for step in range(10):
        whole = make_batch(images, job.settings, 0, SIZE, step, ALONE).image_ids
        shares = {tuple(ids) for seen, ids in lines if seen == step}
        assert shares == {tuple(whole[0::2]), tuple(whole[1::2])}
    # What was done between a checkpoint and the death was done twice, and nothing else. The newest
    # checkpoint counts once the controller has seen it, which takes it a quarter of a second.
    assert {step for step, _ in lines if sum(one == step for one, _ in lines) > 2} <= {2, 3, 4, 5}

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracker.uri)
    history = client.get_metric_history(tracker.run_id, "loss")
    assert [metric.step for metric in history] == list(range(1, 11))
    recorded = client.get_run(tracker.run_id).data.metrics
    assert recorded["system/workers"] == 2
    assert recorded["system/worker_1/process_peak_memory_megabytes"] > 1
    assert 0 <= recorded["system/worker_0/data_wait_share"] < 1


def test_a_loss_that_is_no_number_is_written_down_and_not_tried_again(ray_cluster, tmp_path):
    images = job_in(tmp_path / "first").build()[1]
    whole = make_batch(images, TrainingSettings(**SETTINGS), 0, SIZE, 5, ALONE).image_ids
    job = job_in(tmp_path, whole[0], workers=2)
    with pytest.raises(EchostillError, match=r"the loss became inf at step 6.*bad-batch"):
        run(job, tmp_path)
    assert len(list((tmp_path / "seen").glob("*.jsonl"))) == 2  # one attempt of two workers
    written = sorted((tmp_path / "store/runs/run/bad-batch").iterdir())
    batches = [json.loads(path.read_text()) for path in written]
    assert [batch["worker"] for batch in batches] == [0, 1]
    assert [batch["image_ids"] for batch in batches] == [whole[0::2], whole[1::2]]


def test_one_worker_in_this_process_that_failed_ends_as_one_that_is_left_alone(calm, tmp_path):
    """Ray is not started; a checkpoint is left as Ray's workers would leave it."""
    job = job_in(tmp_path, "fail")
    threads, random = torch.get_num_threads(), torch.random.get_rng_state()
    with pytest.raises(EchostillError, match=r"ValueError: lost on the way\. Checkpoints are kept"):
        run(job, tmp_path, HERE)
    kept = sorted(path.name for path in (tmp_path / "store/runs/run").glob("train/run-*/*"))
    assert kept == ["checkpoint_000000002", "checkpoint_000000004"]
    trained, tracker = run(job, tmp_path, HERE)
    same(trained, calm)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), random)
    (path,) = (tmp_path / "seen").glob("*.jsonl")  # written by this process alone
    steps = [json.loads(line)[0] for line in path.read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9]
    kept = sorted(path.name for path in (tmp_path / "store/runs/run").glob("train/run-*/*"))
    assert kept == ["checkpoint_000000008", "checkpoint_000000010"]

    from mlflow.tracking import MlflowClient

    recorded = MlflowClient(tracker.uri).get_metric_history(tracker.run_id, "loss")
    assert [metric.step for metric in recorded] == list(range(1, 11))


def test_a_loss_that_is_no_number_ends_a_training_in_this_process(tmp_path):
    images = job_in(tmp_path / "first").build()[1]
    whole = make_batch(images, TrainingSettings(**SETTINGS), 0, SIZE, 5, ALONE).image_ids
    with pytest.raises(EchostillError, match=r"the loss became inf at step 6.*bad-batch"):
        run(job_in(tmp_path, whole[0]), tmp_path, HERE)
    (written,) = (tmp_path / "store/runs/run/bad-batch").iterdir()
    assert json.loads(written.read_text())["image_ids"] == whole


def test_workers_continue_what_was_begun_in_this_process(ray_cluster, calm, tmp_path):
    job = job_in(tmp_path, "fail")
    with pytest.raises(EchostillError, match="lost on the way"):
        run(job, tmp_path, HERE)
    two = replace(job, settings=job.settings.model_copy(update={"workers": 2}))
    trained, _ = run(two, tmp_path)
    same(trained, calm)
    lines = [p.read_text().splitlines() for p in (tmp_path / "seen").glob("*.jsonl")]
    starts = sorted(json.loads(own[0])[0] for own in lines)
    assert starts == [0, 4, 4]


def test_weights_spread_over_workers_end_as_whole_ones(ray_cluster, calm, tmp_path):
    """FSDP on two CPU workers, from its own checkpoint too."""
    job = job_in(tmp_path, "die", workers=2, sharding="full")
    trained, _ = run(job, tmp_path)
    same(trained, calm)


def test_without_a_number_of_workers_there_is_one_per_gpu_and_one_on_cpus():
    settings = TrainingSettings(batch_size=6)
    assert plan(settings, [Node(2)]) == WorkerPlan(1, 2.0, 2)
    assert plan(settings, [Node(16, 4), Node(8)]).workers == 4
    assert plan(settings, [Node(16, 8)]).workers == 6  # of which each has an image
    assert plan(settings, [Node(16, 8)], at_once=3).workers == 2
    assert plan(settings, [Node(16, 8)], "cpu").workers == 1


def test_elastic_runs_are_planned_for_the_fewest_workers():
    settings = TrainingSettings(workers=(1, 4))
    assert plan(settings, [Node(2)]) == WorkerPlan(4, 1.0, 1, 0.0)
    assert plan(settings, [Node(8, 1)]).gpus_per_worker == 1.0
    with pytest.raises(UsageError, match=r"2 training workers need a GPU each, and there are 1"):
        plan(TrainingSettings(workers=2), [Node(8, 1)])  # not on CPUs without a word
