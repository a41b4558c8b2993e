"""Pretraining on Ray Train: one worker or two, the same teacher; exported, found, not repeated."""

import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from echostill.curation import IngestConfig, ingest
from echostill.distill import PretrainConfig, pretrain
from echostill.distill.pretraining import plan_pretrain
from echostill.platform.config import ModelsConfig, TeacherSettings
from echostill.platform.errors import UsageError
from echostill.platform.models.weights import find_teacher
from echostill.platform.tables.store import Store
from echostill.platform.tables.verify import verify_store
from echostill.platform.training.loop import TrainingSettings
from echostill.platform.training.run import read_history

MODEL = "tinyusfm-micro"  # the smaller of the two; the recipe is the same


def configuration(root, workers=1, **settings):
    # Five images over two workers are three and two: unequal shares must still weigh alike.
    training = TrainingSettings(
        steps=3, batch_size=5, learning_rate=0.05, checkpoints=3, threads=1, workers=workers
    )
    values = {"store": str(root), "model": MODEL, "training": training, "progress": False}
    return PretrainConfig(**{**values, **settings})


@pytest.fixture(scope="module")
def pretrained(ray_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    (folder / "pictures").mkdir()
    for seed in range(11):
        pixels = np.random.default_rng(seed).integers(0, 255, (60, 70), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{seed}.png")
    root = folder / "store"
    plain = {"pixels": "off"}
    ingest(
        IngestConfig(
            store=str(root), source=str(folder / "pictures"), deidentify=plain, progress=False
        )
    )
    said = str(pretrain(configuration(root)))
    assert said.startswith(f"trained: {MODEL} on 11 images, 3 steps, loss ")
    return root


def weights_in(root):
    return load_file(Store(str(root)).run("teacher").local_path("model.safetensors"))


def test_the_teacher_is_found_and_not_trained_again(pretrained):
    named = ModelsConfig(store=str(pretrained), teacher=TeacherSettings(model=MODEL))
    encoder = find_teacher(named).load()
    assert encoder.name == MODEL
    assert not encoder.training
    assert str(pretrain(configuration(pretrained))).startswith("already done")
    assert "already done  yes" in plan_pretrain(configuration(pretrained)).describe()
    with pytest.raises(UsageError, match="refused: seed 0 -> 1"):
        pretrain(configuration(pretrained, seed=1))
    store = Store(str(pretrained))
    assert [row["step"] for row in read_history(store.run("teacher"))] == [1, 2, 3]
    assert not store.run("teacher").exists("train")  # checkpoints serve resuming alone
    assert verify_store(store.root).sound


def test_two_workers_train_what_one_trains(pretrained, tmp_path):
    other = tmp_path / "other"
    for folder in ("pool", "records/pool"):
        shutil.copytree(pretrained / folder, other / folder)
    pretrain(configuration(other, workers=2))
    one, two = weights_in(pretrained), weights_in(other)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert np.allclose(value, two[name], rtol=1e-3, atol=2e-4), name
