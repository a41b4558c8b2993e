"""Which models a run compares; nothing is loaded that nobody asked for."""

import pytest
import torch

from echostill.eval.unius.protocols.data import find_tasks
from echostill.eval.unius.running.models import BASELINES, find_bench_units
from echostill.eval.unius.running.settings import load_bench
from echostill.platform.errors import UsageError
from echostill.platform.models import create_encoder
from echostill.platform.tables.store import Store

GIVEN = ["student=tinyusfm-micro", "student_image_size=32", "protocol.image_size=32"]


@pytest.fixture
def units(prepared_set, tmp_path):
    kinds = ("classification", "segmentation")
    tasks = [
        task
        for name in ("busi", "luminous")
        for task in find_tasks(prepared_set(name)[1].table.storage.root, (), kinds)
    ]

    def find(*texts):
        config = load_bench(None, [f"store={tmp_path}", *GIVEN, *texts])
        return find_bench_units(config, Store(config.store), tasks)

    return find


def test_every_model_meets_every_task_with_every_seed(units):
    found = units("models=[untrained, mobilenetv3]", "seeds=[0, 1]")
    assert [(unit.task.name, unit.model.candidate, unit.model.seed) for unit in found] == [
        (task, model, seed)
        for task in ("busi-classification", "luminous-segmentation")
        for model in ("untrained", "mobilenetv3")
        for seed in (0, 1)
    ]
    assert len({unit.key.digest for unit in found}) == len(found)


def test_a_key_depends_on_what_decides_the_result(units):
    plain = units("models=[untrained]")[0].key.digest
    assert units("models=[untrained]", "workers=2")[0].key.digest == plain
    others = [
        units("models=[untrained]", text)[0].key.digest
        for text in ("seeds=[7]", "protocols=[published]", "student_image_size=64")
    ]
    assert len({plain, *others}) == 4


def test_the_reference_is_only_trained_for_segmentation(units):
    found = units("models=[unet]", "protocols=[frozen, published]")
    assert [(unit.task.name, unit.protocol) for unit in found] == [
        ("luminous-segmentation", "published")
    ]
    with pytest.raises(UsageError, match="nothing to do"):
        units("models=[unet]")


@pytest.mark.slow  # nine models of timm, on paper
def test_every_baseline_can_be_built_is_light_and_is_measured_once(units):
    found = units("models=[repvit, baselines]", "protocol.image_size=64")
    models = {unit.model.candidate: unit.model for unit in found if unit.task.set == "busi"}
    assert sorted(models) == sorted(BASELINES)
    assert len(found) == 2 * len(BASELINES)
    for model in models.values():
        with torch.device("meta"):
            encoder = create_encoder(model.model, image_size=64)
        assert sum(parameter.numel() for parameter in encoder.parameters()) < 9e6


@pytest.mark.parametrize(
    ("texts", "message"),
    {
        ("models=[untraind]",): "no model 'untraind'.*Did you mean 'untrained'",
        ("models=[timm:nothing]",): "timm has no model 'nothing'",
        ("models=[repvit]", "weights={repvi: a.pth}"): "none of the models.*'repvit'",
        ("models=[repvit]", "weights={repvit: none.pth}"): "none.pth",
        ("models=[unet]", "weights={unet: a.pth}"): "takes no weights",
        ("models=[teacher]",): "no teacher",
        ("seeds=[0, 0]",): "listed more than once",
        ("protocol.shares=[0.5]",): "one of them 1.0",
    }.items(),
)
def test_what_is_not_there_is_named(units, texts, message):
    with pytest.raises(UsageError, match=message):
        units(*texts)
