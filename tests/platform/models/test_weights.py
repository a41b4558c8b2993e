import pytest
import timm
import torch
from timm.models.beit import checkpoint_filter_fn as beit_filter
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter

from echostill.platform.config import ModelsConfig, TeacherSettings, result_relevant, validate
from echostill.platform.errors import UsageError
from echostill.platform.models import create_encoder, save_weights
from echostill.platform.models.weights import find_run, find_teacher, find_weights
from echostill.platform.tables.storage import Storage


def seeded(name, seed=0, **options):
    """An encoder none of whose parameters is at a special value such as 0 or 1."""
    torch.manual_seed(seed)
    encoder = create_encoder(name, **options).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return encoder


def pixels_for(encoder, batch=2):
    torch.manual_seed(7)
    return torch.rand(batch, 3, encoder.image_size, encoder.image_size)


def teacher_of(tmp_path, **settings):
    return find_teacher(ModelsConfig(store=str(tmp_path), teacher=TeacherSettings(**settings)))


@pytest.mark.parametrize(
    ("name", "size", "convert"),
    [
        ("tinyusfm-micro", 64, vit_filter),
        ("usfm-micro", 64, beit_filter),
        ("usfm-micro", 160, beit_filter),
        ("timm:test_vit", 96, vit_filter),
        ("timm:test_vit3", 224, vit_filter),
    ],
)
def test_positions_are_resampled_as_timm_loads_them(tmp_path, name, size, convert):
    source = seeded(name)
    save_weights(source, tmp_path / "w.safetensors", {})
    found = teacher_of(
        tmp_path, model=name, weights=str(tmp_path / "w.safetensors"), image_size=size
    )
    assert f"resampled from {source.image_size} pixels" in found.notes
    encoder = found.load()
    expected = create_encoder(name, image_size=size).eval()
    converted = convert(dict(source.backbone.state_dict()), expected.backbone)
    expected.backbone.load_state_dict(converted, strict=True)
    pixels = pixels_for(encoder)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder(pixels).tokens, expected(pixels).tokens, rtol=1e-6, atol=1e-6
        )
    assert encoder.image_size == size


def test_weights_of_the_wanted_size_are_not_resampled(tmp_path):
    source = seeded("tinyusfm-micro", image_size=64)
    save_weights(source, tmp_path / "w.safetensors", {})
    found = find_weights("tinyusfm-micro", str(tmp_path / "w.safetensors"), image_size=64).checked()
    assert found.notes == ""
    loaded = found.load().backbone.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in source.backbone.state_dict().items())


def test_another_size_is_refused_with_the_key_to_set(tmp_path):
    save_weights(seeded("tinyusfm-micro", image_size=64), tmp_path / "w.safetensors", {})
    with pytest.raises(UsageError, match=r"teacher\.image_size=64"):
        teacher_of(tmp_path, model="tinyusfm-micro", weights=str(tmp_path / "w.safetensors"))


def test_positions_that_timm_cannot_resample_are_refused(tmp_path):
    save_weights(seeded("timm:convit_tiny", image_size=64), tmp_path / "w.safetensors", {})
    with pytest.raises(UsageError, match="timm cannot resample the positions"):
        teacher_of(
            tmp_path,
            model="timm:convit_tiny",
            weights=str(tmp_path / "w.safetensors"),
            image_size=96,
        )


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_resnet", "test_convnext"])
def test_timm_pooling_is_forward_head(tmp_path, name):
    source = seeded(f"timm:{name}")
    path = tmp_path / "w.pth"
    torch.save(source.backbone.state_dict(), path)
    found = teacher_of(tmp_path, model=f"timm:{name}", weights=str(path), pooling="timm")
    encoder = found.load()
    reference = timm.create_model(name, num_classes=0).eval()
    reference.load_state_dict(torch.load(path, weights_only=True), strict=True)
    pixels = pixels_for(encoder)
    with torch.no_grad():
        features = reference.forward_features(encoder.normalise(pixels))
        expected = reference.forward_head(features, pre_logits=True)
        assert torch.equal(encoder(pixels).pooled, expected)
    assert expected.shape == (2, encoder.feature_dim)


def test_the_class_token_and_the_mean(tmp_path):
    save_weights(seeded("usfm-micro"), tmp_path / "w.safetensors", {})
    features = {}
    for pooling in (None, "mean", "class-token", "timm"):
        encoder = teacher_of(
            tmp_path,
            model="usfm-micro",
            weights=str(tmp_path / "w.safetensors"),
            pooling=pooling,
        ).load()
        with torch.no_grad():
            output = encoder(pixels_for(encoder))
            own = {"class-token": output.tokens[:, 0]}.get(
                pooling, output.tokens[:, 1:].mean(dim=1)
            )
            expected = encoder.backbone.fc_norm(own)
        assert torch.equal(output.pooled, expected)
        features[pooling] = output.pooled
    assert torch.equal(features[None], features["mean"])
    assert not torch.equal(features["mean"], features["class-token"])


def test_a_key_takes_another_set(tmp_path, capsys):
    first, second = (seeded("tinyusfm-micro", seed).backbone.state_dict() for seed in (1, 2))
    torch.save({"model": first, "model_ema": second}, tmp_path / "w.pth")
    settings = {"model": "tinyusfm-micro", "weights": str(tmp_path / "w.pth")}
    plain = teacher_of(tmp_path, **settings)
    said = capsys.readouterr().err
    assert "took 'model'; beside it the file holds 'model_ema'" in said
    assert torch.equal(plain.load().backbone.cls_token, first["cls_token"])
    keyed = teacher_of(tmp_path, **settings, key="model_ema")
    assert torch.equal(keyed.load().backbone.cls_token, second["cls_token"])
    assert plain.identity("teacher") == {"teacher": plain.digest}
    assert keyed.identity("teacher") == {"teacher": plain.digest, "teacher.key": "model_ema"}


def test_keys_that_are_not_set_are_in_no_fingerprint():
    plain = result_relevant(ModelsConfig())
    assert plain["teacher"] == {"model": "usfm", "weights": None}
    assert "student_image_size" not in plain
    config = validate(
        ModelsConfig, {"teacher": {"image_size": 448, "pooling": "timm"}, "student_image_size": 96}
    )
    assert result_relevant(config)["teacher"]["image_size"] == 448
    assert result_relevant(config)["student_image_size"] == 96
    for wrong in ({"pooling": "max"}, {"image_size": 0}):
        with pytest.raises(UsageError):
            validate(ModelsConfig, {"teacher": wrong})


def test_a_run_says_its_own_model_and_size(tmp_path):
    encoder = seeded("tinyusfm-micro", image_size=96)
    save_weights(encoder, tmp_path / "model.safetensors", {})
    found = find_run(Storage(str(tmp_path)))
    assert (found.model, found.image_size) == ("tinyusfm-micro", 96)
    loaded = found.load()
    assert torch.equal(loaded.backbone.pos_embed, encoder.backbone.pos_embed)


@pytest.mark.parametrize("size", [None, 160])
def test_a_file_is_checked_without_a_model(tmp_path, size, monkeypatch):
    """The driver plans from shapes alone, and refuses what loading would refuse."""
    save_weights(seeded("usfm-micro"), tmp_path / "w.safetensors", {})
    found = find_weights("usfm-micro", str(tmp_path / "w.safetensors"), image_size=size)
    outline = found.outline()
    assert all(parameter.is_meta for parameter in outline.parameters())
    loaded = found.load()
    assert (outline.image_size, outline.feature_dim) == (loaded.image_size, loaded.feature_dim)
    monkeypatch.setattr("echostill.platform.models.weights.load_weights", None)
    assert found.checked().notes == ("positions resampled from 128 pixels" if size else "")
    other = find_weights("tinyusfm-micro", str(tmp_path / "w.safetensors"))
    with pytest.raises(UsageError, match="holds weights of 'usfm-micro' and does not fit"):
        other.checked()
