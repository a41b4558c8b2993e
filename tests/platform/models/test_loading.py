import logging
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models.beit import Beit
from torch import nn

from echostill.platform.errors import UsageError
from echostill.platform.models import (
    Encoder,
    create_encoder,
    load_weights,
    save_weights,
    weights_digest,
)

MICRO = ("usfm-micro", "tinyusfm-micro")


def seeded(name, seed=0, **options):
    """An encoder none of whose parameters is at a special value such as 0 or 1."""
    torch.manual_seed(seed)
    encoder = create_encoder(name, **options).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return encoder


def on_meta(name):
    with torch.device("meta"):
        return create_encoder(name)


def state(encoder):
    return {key: value.clone() for key, value in encoder.backbone.state_dict().items()}


def same(encoder, tensors):
    own = encoder.backbone.state_dict()
    return own.keys() == tensors.keys() and all(torch.equal(own[key], tensors[key]) for key in own)


def saved(tmp_path, tensors, name="weights.pth"):
    path = tmp_path / name
    torch.save(tensors, path)
    return path


def refused(encoder, path):
    """The message with which a file is refused; the encoder must not have changed."""
    before = state(encoder)
    with pytest.raises(UsageError) as caught:
        load_weights(encoder, path)
    assert same(encoder, before)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("name", [*MICRO, "timm:test_vit", "timm:test_resnet"])
def test_round_trip(tmp_path, name):
    source, target = seeded(name, 1), seeded(name, 2)
    path = tmp_path / "new" / "weights.safetensors"
    save_weights(source, path, {"recipe": "test"})
    report = load_weights(target, path)
    assert same(target, state(source))
    assert report.loaded == len(state(source))
    assert report.left_out == report.renamed == ()
    with safe_open(str(path), framework="pt") as file:
        assert file.metadata()["model"] == name
        assert file.metadata()["recipe"] == "test"
    assert [entry.name for entry in path.parent.iterdir()] == ["weights.safetensors"]


def test_published_keys():
    beit = set(state(on_meta("usfm")))
    assert {
        "cls_token",
        "patch_embed.proj.weight",
        "blocks.0.gamma_1",
        "blocks.0.gamma_2",
        "blocks.11.attn.q_bias",
        "blocks.11.attn.v_bias",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.relative_position_bias_table",
        "blocks.0.mlp.fc1.bias",
        "fc_norm.weight",
    } <= beit
    vit = set(state(on_meta("tinyusfm")))
    assert {"cls_token", "pos_embed", "blocks.11.attn.qkv.bias", "fc_norm.bias"} <= vit
    assert not {"norm.weight", "head.weight"} & (beit | vit)


@pytest.mark.slow
def test_the_same_weights_give_the_same_bytes(tmp_path):
    # In another process too: the order of a hash table must not reach the file.
    code = (
        "import sys, torch\n"
        "from echostill.platform.models import create_encoder, save_weights, weights_digest\n"
        "torch.manual_seed(5)\n"
        "encoder = create_encoder('tinyusfm-micro')\n"
        "save_weights(encoder, sys.argv[1], {key: key for key in 'abcdefgh'})\n"
        "print(weights_digest(sys.argv[1]))\n"
    )
    path = tmp_path / "elsewhere.safetensors"
    digest = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout.strip()
    torch.manual_seed(5)
    encoder = create_encoder("tinyusfm-micro")
    here = tmp_path / "here.safetensors"
    save_weights(encoder, here, {key: key for key in "hgfedcba"})
    assert weights_digest(here) == digest
    assert len(digest) == 64
    with torch.no_grad():
        encoder.backbone.cls_token.add_(1)
    save_weights(encoder, here, {})
    assert weights_digest(here) != digest


@pytest.mark.parametrize("wrapper", ["module.model.", "module.", "model.", "encoder.", "backbone."])
@pytest.mark.parametrize("container", [None, "model", "state_dict", "teacher"])
def test_wrappers_and_containers(tmp_path, wrapper, container):
    source, target = seeded("tinyusfm-micro", 1), seeded("tinyusfm-micro", 2)
    tensors = {wrapper + key: value for key, value in state(source).items()}
    path = saved(tmp_path, {container: tensors, "epoch": 3} if container else tensors)
    load_weights(target, path)
    assert same(target, state(source))


def test_known_heads_are_left_out_and_reported(tmp_path, caplog):
    source, target = seeded("tinyusfm-micro", 1), seeded("tinyusfm-micro", 2)
    heads = {"head.weight": torch.ones(2, 64), "decoder_pred.bias": torch.ones(3)}
    with caplog.at_level(logging.INFO):
        report = load_weights(target, saved(tmp_path, {**state(source), **heads}))
    assert report.left_out == ("decoder_pred.bias", "head.weight")
    assert "head.weight" in caplog.text
    assert same(target, state(source))
    stranger = {**state(source), "header.weight": torch.ones(1)}
    assert "1 unexpected: header.weight" in refused(target, saved(tmp_path, stranger))


def test_a_distillation_checkpoint_gives_its_student(tmp_path):
    # As MAE-Lite saves it: student, teacher and adapters in one wrapped module.
    source, target = seeded("tinyusfm-micro", 1), seeded("tinyusfm-micro", 2)
    tensors = {f"module.model.{key}": value for key, value in state(source).items()}
    tensors["module.model.mask_token"] = torch.zeros(1, 1, 96)
    tensors["module.tch_model.cls_token"] = torch.ones(1, 1, 64)
    tensors["module.attn_adapter.adapter11.weight"] = torch.ones(12, 12, 1, 1)
    report = load_weights(target, saved(tmp_path, {"model": tensors, "start_epoch": 400}))
    assert same(target, state(source))
    assert report.left_out == ("attn_adapter.adapter11.weight", "mask_token", "tch_model.cls_token")


def test_the_pretraining_norm_is_taken_for_the_pooled_one(tmp_path):
    source, target = seeded("tinyusfm-micro", 1), seeded("tinyusfm-micro", 2)
    tensors = {key.replace("fc_norm.", "norm."): value for key, value in state(source).items()}
    report = load_weights(target, saved(tmp_path, tensors))
    assert report.renamed == (("norm.weight", "fc_norm.weight"), ("norm.bias", "fc_norm.bias"))
    assert same(target, state(source))
    both = {**state(source), "norm.weight": torch.ones(64), "norm.bias": torch.ones(64)}
    assert "2 unexpected: norm.bias, norm.weight" in refused(target, saved(tmp_path, both))


def test_relative_position_index_must_be_the_same(tmp_path):
    source, target = seeded("usfm-micro", 1), seeded("usfm-micro", 2)
    key = "blocks.0.attn.relative_position_index"
    index = source.backbone.blocks[0].attn.relative_position_index.clone()
    load_weights(target, saved(tmp_path, {**state(source), key: index}))
    assert same(target, state(source))
    message = refused(target, saved(tmp_path, {**state(source), key: index.flip(0)}))
    assert key in message
    message = refused(target, saved(tmp_path, {**state(source), key: index[:9, :9].clone()}))
    assert f"{key} has shape (9, 9), expected (65, 65)" in message
    unknown = "blocks.77.attn.relative_position_index"
    assert unknown in refused(target, saved(tmp_path, {**state(source), unknown: index}))


def test_a_shared_bias_table_goes_to_every_block(tmp_path):
    source, target = seeded("usfm-micro", 1), seeded("usfm-micro", 2)
    name = "attn.relative_position_bias_table"
    tensors = {key: value for key, value in state(source).items() if not key.endswith(name)}
    shared = torch.randn(15 * 15 + 3, 4)
    tensors["rel_pos_bias.relative_position_bias_table"] = shared
    tensors["rel_pos_bias.relative_position_index"] = source.backbone.blocks[
        0
    ].attn.relative_position_index.clone()
    report = load_weights(target, saved(tmp_path, tensors))
    assert len(report.renamed) == 6
    loaded = state(target)
    assert all(torch.equal(loaded[f"blocks.{block}.{name}"], shared) for block in range(6))


def beit_without_biases():
    backbone = Beit(
        img_size=128,
        num_classes=0,
        embed_dim=128,
        depth=6,
        num_heads=4,
        qkv_bias=False,
        init_values=0.1,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    return Encoder(backbone, name="without-biases", image_size=128)


def test_bias_trap_a_model_without_biases_refuses_a_published_file(tmp_path):
    path = saved(tmp_path, state(seeded("usfm-micro")))
    message = refused(beit_without_biases(), path)
    assert "12 unexpected: blocks.0.attn.q_bias, blocks.0.attn.v_bias" in message
    assert "and 2 more" in message
    assert "qkv_bias=True" in message
    assert str(path) in message


def test_bias_trap_a_file_without_biases_is_refused(tmp_path):
    path = saved(tmp_path, state(beit_without_biases()))
    message = refused(seeded("usfm-micro"), path)
    assert "12 missing: blocks.0.attn.q_bias" in message
    assert "saved without qkv_bias" in message


def test_no_word_of_biases_where_more_than_they_differ(tmp_path):
    path = saved(tmp_path, state(seeded("tinyusfm-micro")))
    message = refused(seeded("usfm-micro"), path)
    assert "q_bias" in message  # listed among what is missing
    assert "qkv_bias" not in message
    other = {**state(seeded("usfm-micro")), "stranger.weight": torch.ones(1)}
    message = refused(beit_without_biases(), saved(tmp_path, other))
    assert "13 unexpected" in message
    assert "qkv_bias" not in message


def test_biases_are_really_loaded(tmp_path):
    source, target = seeded("usfm-micro", 1), seeded("usfm-micro", 2)
    tensors = state(source)
    tensors["blocks.3.attn.q_bias"] = torch.full((128,), 0.5)
    load_weights(target, saved(tmp_path, tensors))
    assert torch.equal(target.backbone.blocks[3].attn.q_bias, torch.full((128,), 0.5))


def test_a_differing_shape_names_key_and_shapes(tmp_path):
    path = tmp_path / "small.safetensors"
    save_weights(seeded("tinyusfm-micro", image_size=64), path, {})
    message = refused(seeded("tinyusfm-micro"), path)
    assert "pos_embed has shape (1, 17, 64), expected (1, 65, 64)" in message


def test_the_file_says_whose_weights_it_holds(tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_weights(seeded("usfm-micro"), path, {})
    assert "weights of 'usfm-micro'" in refused(seeded("tinyusfm-micro"), path)


def test_broken_numbers_are_refused(tmp_path):
    tensors = state(seeded("tinyusfm-micro"))
    tensors["cls_token"][0, 0, 0] = float("nan")
    message = refused(seeded("tinyusfm-micro", 1), saved(tmp_path, tensors))
    assert "not finite" in message
    assert "cls_token" in message


def test_missing_files_name_the_nearest(tmp_path):
    encoder = create_encoder("tinyusfm-micro")
    save_weights(encoder, tmp_path / "teacher.safetensors", {})
    assert "Did you mean 'teacher.safetensors'?" in refused(
        encoder, tmp_path / "techer.safetensors"
    )
    assert "is a folder" in refused(encoder, tmp_path)
    (tmp_path / "weights").mkdir()
    assert "Did you mean 'weights'?" in refused(encoder, tmp_path / "weigths" / "a.pth")
    with pytest.raises(UsageError, match="Did you mean"):
        weights_digest(tmp_path / "techer.safetensors")


def test_unreadable_files_are_refused(tmp_path):
    encoder = create_encoder("tinyusfm-micro")
    for name in ("a.safetensors", "a.pth"):
        for content in (b"", b"not weights at all", b"\x80\x02"):
            (tmp_path / name).write_bytes(content)
            assert name in refused(encoder, tmp_path / name)
    (tmp_path / "a.onnx").write_bytes(b"x")
    assert "expected .safetensors, .pth, .pt" in refused(encoder, tmp_path / "a.onnx")
    whole = saved(tmp_path, state(encoder), "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    assert "cut.pth" in refused(encoder, tmp_path / "cut.pth")
    assert "no state dict" in refused(encoder, saved(tmp_path, [1, 2]))
    assert "epoch" in refused(encoder, saved(tmp_path, {**state(encoder), "epoch": 3}))
    # Objects other than tensors would run code when they are loaded.
    assert "foreign code" in refused(encoder, saved(tmp_path, {"model": encoder}))
    with pytest.raises(UsageError, match=r"not as 'a\.pth'"):
        save_weights(encoder, tmp_path / "a.pth", {})


def test_two_models_in_one_file_are_refused(tmp_path):
    encoder = seeded("tinyusfm-micro")
    twice = {
        f"{prefix}{key}": value
        for key, value in state(encoder).items()
        for prefix in ("", "module.")
    }
    assert "two tensors for" in refused(encoder, saved(tmp_path, twice))


def test_half_precision_files_load(tmp_path):
    source, target = seeded("tinyusfm-micro", 1), seeded("tinyusfm-micro", 2)
    path = tmp_path / "half.safetensors"
    save_file({key: value.half() for key, value in state(source).items()}, path)
    load_weights(target, path)
    assert target.backbone.cls_token.dtype == torch.float32
    torch.testing.assert_close(
        target.backbone.cls_token, source.backbone.cls_token, rtol=1e-3, atol=1e-3
    )
