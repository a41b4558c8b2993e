import json

import pytest
import torch

from echostill.eval.candidates import Candidate, build_models, find_units, weights_identity
from echostill.eval.heads import check_segmentation
from echostill.platform.config import ModelsConfig, TeacherSettings
from echostill.platform.errors import UsageError
from echostill.platform.models import create_encoder, save_weights
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST


def finished_run(store, name, model, **options):
    torch.manual_seed(3)
    encoder = create_encoder(model, **options)
    folder = store.run(name).local_path()
    save_weights(encoder, f"{folder}/model.safetensors", {})
    manifest = {"stage": "distill", "fingerprint": {"digest": "0"}}
    store.run(name).write(MANIFEST, json.dumps(manifest).encode())
    return encoder


def test_each_candidate_has_its_own_model_and_size(tmp_path):
    store = Store(str(tmp_path))
    small = finished_run(store, "small-0", "tinyusfm-micro", image_size=96)
    finished_run(store, "other-0", "timm:test_vit")
    torch.manual_seed(1)
    save_weights(create_encoder("usfm-micro"), tmp_path / "teacher.safetensors", {})
    config = ModelsConfig(
        store=str(tmp_path),
        teacher=TeacherSettings(
            model="usfm-micro",
            weights=str(tmp_path / "teacher.safetensors"),
            image_size=64,
            pooling="class-token",
        ),
        student="tinyusfm-micro",
        student_image_size=32,
    )
    units = find_units(config, store, (), ["task"], [0, 1])
    sizes = {model: encoder.image_size for model, encoder in build_models(units).items()}
    assert sizes == {
        ("teacher", ""): 64,
        ("small student", "small-0"): 96,
        ("other student", "other-0"): 160,
        ("untrained student", ""): 32,
    }
    loaded = next(unit for unit in units if unit.run == "small-0").load()
    assert torch.equal(loaded.backbone.pos_embed, small.backbone.pos_embed)
    teacher = next(unit for unit in units if unit.candidate == "teacher").load()
    assert (teacher.image_size, teacher.pooling) == (64, "class-token")
    identity = weights_identity(units)
    assert identity["teacher/.image_size"] == "64"
    assert identity["teacher/.pooling"] == "class-token"
    assert {key.partition(".")[0] for key in identity} == {
        "teacher/",
        "small student/small-0",
        "other student/other-0",
    }


def test_missing_runs_are_named(tmp_path):
    store = Store(str(tmp_path))
    finished_run(store, "small-0", "tinyusfm-micro")
    for candidate, words in (
        (Candidate(label="x", runs=("smal-0",)), "Did you mean 'small-0'"),
        (Candidate(label="x"), "has no runs"),
    ):
        with pytest.raises(UsageError, match=words):
            find_units(ModelsConfig(store=str(tmp_path)), store, [candidate], ["task"], [0])


def test_segmentation_needs_one_grid():
    with torch.device("meta"):
        for name in ("tinyusfm-micro", "timm:test_vit"):
            check_segmentation(create_encoder(name))
        for name in ("timm:test_resnet", "timm:test_convnext"):
            with pytest.raises(UsageError, match="cannot be evaluated on segmentation"):
                check_segmentation(create_encoder(name))
