"""Opening exports: by folder, by file, and what is refused."""

import json

import numpy as np
import pytest
import torch

from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.models import create_encoder, save_weights, weights_digest
from echostill.platform.models.exported import FILES, FeatureModel, machine, open_export, require


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_weights(create_encoder("tinyusfm-micro"), tmp_path / "model.safetensors", {})
    entry = {
        "form": "safetensors",
        "file": "model.safetensors",
        "sha256": weights_digest(tmp_path / "model.safetensors"),
    }
    content = {
        "format_version": 1,
        "model": "tinyusfm-micro",
        "input": {"image_size": 128},
        "files": [entry],
    }
    (tmp_path / "export.json").write_text(json.dumps(content))
    return tmp_path


def test_a_folder_and_its_file_are_the_same_model(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 128, 128), dtype=np.uint8)
    first, second = open_export(folder), open_export(folder / "model.safetensors")
    assert np.array_equal(first.features(pixels), second.features(pixels))
    assert first.digest == weights_digest(folder / "model.safetensors")
    encoder = create_encoder("tinyusfm-micro")
    from echostill.platform.models import load_weights

    load_weights(encoder, folder / "model.safetensors")
    with torch.inference_mode():
        own = encoder.eval()(torch.from_numpy(pixels).float() / 255).pooled.numpy()
    np.testing.assert_allclose(first.features(pixels), own, rtol=1e-5, atol=1e-6)


def test_a_file_changed_since_is_refused(folder):
    save_weights(create_encoder("tinyusfm-micro"), folder / "model.safetensors", {})
    with pytest.raises(UsageError, match="SHA-256 differs"):
        open_export(folder)


def test_another_format_is_refused(folder):
    content = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**content, "format_version": 9}))
    with pytest.raises(EchostillError, match="format 9"):
        open_export(folder)


@pytest.mark.parametrize(
    ("path", "form", "words"),
    [
        ("", "onnx", "no form 'onnx'.*safetensors"),
        ("model.safetensors", "timm", "has the form safetensors, not timm"),
        ("modell.safetensors", None, "Did you mean 'model.safetensors'"),
        ("export.json", None, "is no exported model"),
    ],
)
def test_what_is_not_there_is_named(folder, path, form, words):
    with pytest.raises(UsageError, match=words):
        open_export(folder / path, form)


def test_a_folder_without_a_manifest_is_no_export(tmp_path):
    with pytest.raises(UsageError, match=r"holds no export\.json"):
        open_export(tmp_path)


def test_a_damaged_onnx_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(UsageError, match="cannot be opened by ONNX Runtime"):
        open_export(tmp_path / "model.onnx")


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_a_graph_has_the_precision_it_was_exported_in(folder, form):
    (folder / FILES[form]).write_bytes(b"a graph")
    with pytest.raises(UsageError, match=rf"is a graph \({form}\), which computes in what it was"):
        open_export(folder / FILES[form], precision="bfloat16")


@pytest.mark.parametrize(("given", "named"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_a_model_names_its_precision(folder, given, named):
    assert open_export(folder, precision=given).precision == named


def test_features_must_be_finite():
    broken = FeatureModel("m", "onnx", 8, "", lambda pixels: np.full((len(pixels), 2), np.nan))
    with pytest.raises(EchostillError, match="not finite"):
        broken.features(np.zeros((1, 3, 8, 8), dtype=np.uint8))


def test_a_missing_library_names_the_extra():
    with pytest.raises(UsageError, match=r"nothing_like_it.*echostill\[export\]"):
        require("nothing_like_it.inside")


def test_the_machine_is_described():
    assert {"processor", "cores", "python", "torch"} <= machine().keys()
