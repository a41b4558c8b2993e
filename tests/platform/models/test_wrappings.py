"""One set of weights in the many files that people have: it loads with equal values, or is refused.

Every file is made here, by combination: how the keys are wrapped, what lies around the mapping,
what lies beside it, and how the file is written.
"""

import argparse
import collections
import datetime
import io
import os
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from echostill.platform.errors import UsageError
from echostill.platform.models import create_encoder, load_weights

pytestmark = pytest.mark.slow

NAME = "tinyusfm-micro"


def fresh(seed):
    """An encoder at 32 pixels none of whose parameters is at a special value such as 0 or 1."""
    torch.manual_seed(seed)
    encoder = create_encoder(NAME, image_size=32).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return encoder


SOURCE, OTHER = fresh(1), fresh(2)
WEIGHTS = {key: value.clone() for key, value in SOURCE.backbone.state_dict().items()}
OTHERS = {key: value.clone() for key, value in OTHER.backbone.state_dict().items()}


def under(prefix, tensors=None):
    return {prefix + key: value for key, value in (WEIGHTS if tensors is None else tensors).items()}


def loaded(path, **options):
    """Load into a new encoder; see that every value is that of the source."""
    target = fresh(3)
    report = load_weights(target, path, **options)
    for key, value in target.backbone.state_dict().items():
        assert torch.equal(value, WEIGHTS[key]), key
    assert report.loaded == len(WEIGHTS)
    return report


def refused(path, **options):
    target = fresh(3)
    before = {key: value.clone() for key, value in target.backbone.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_weights(target, path, **options)
    after = target.backbone.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    message = str(caught.value)
    assert str(path) in message
    assert "weights_only" not in message.replace("weights_only=False), NEW", "")
    assert "\n" not in message
    return message


def save(path, content, **options):
    torch.save(content, path, **options)
    return path


# --- wrapped keys, containers, suffixes ----------------------------------------------------------

WRAPPERS = [
    *("_orig_mod.", "module.", "model.", "backbone.", "student.", "teacher.", "encoder.", "net."),
    *("_forward_module.", "_fsdp_wrapped_module.", "trunk.", "visual.trunk.", "model_ema.module."),
    *("module.trunk.", "_orig_mod.module.vit._orig_mod.encoder.", "model.teacher.backbone."),
]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    words=st.lists(st.sampled_from(WRAPPERS[:8]), max_size=4),
    containers=st.lists(
        st.sampled_from(["model", "state_dict", "teacher", "net", "model_state_dict", "ema", "x"]),
        max_size=3,
    ),
    suffix=st.sampled_from([".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".model", ""]),
    legacy=st.booleans(),
)
def test_any_nesting_of_wrappers_and_containers(tmp_path, words, containers, suffix, legacy):
    roles = [word for word in words if word in ("student.", "teacher.")]
    words = [word for word in words if word not in roles[1:]]  # one network has one role
    content = under("".join(words))
    for name in containers:
        content = {name: content, "epoch": 3, "best": 0.5}
    path = tmp_path / f"weights{suffix}"
    loaded(save(path, content, _use_new_zipfile_serialization=not legacy))


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_each_wrapper(tmp_path, prefix):
    loaded(save(tmp_path / "a.pth", under(prefix)))


def test_what_torch_adds_in_the_middle_of_a_key(tmp_path):
    for word in ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module."):
        tensors = {
            key.replace("blocks.2.", f"blocks.2.{word}"): value for key, value in WEIGHTS.items()
        }
        loaded(save(tmp_path / "a.pth", under("module.", tensors)))


@pytest.mark.parametrize("name", ["a.safetensors", "pytorch_model.bin", "a.ckpt", "weights"])
def test_safetensors_by_content(tmp_path, name):
    save_file(under("module.backbone."), tmp_path / name)
    loaded(tmp_path / name)


def test_a_pytorch_file_named_safetensors(tmp_path):
    loaded(save(tmp_path / "a.safetensors", {"model": WEIGHTS}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path, dtype):
    path = save(tmp_path / "a.pth", {key: value.to(dtype) for key, value in WEIGHTS.items()})
    target = fresh(3)
    load_weights(target, path)
    for key, value in target.backbone.state_dict().items():
        assert torch.equal(value, WEIGHTS[key].to(dtype).float())


def test_parameters_views_and_modules(tmp_path):
    parameters = {key: nn.Parameter(value.clone()) for key, value in WEIGHTS.items()}
    loaded(save(tmp_path / "a.pth", parameters))
    strided = {key: torch.stack([value, value], -1)[..., 0] for key, value in WEIGHTS.items()}
    loaded(save(tmp_path / "b.pth", strided))
    average = AveragedModel(SOURCE.backbone, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    report = loaded(save(tmp_path / "c.pth", average.state_dict()))
    assert report.left_out == ("n_averaged",)
    data_parallel = nn.DataParallel(SOURCE.backbone).state_dict()  # with its _metadata
    loaded(save(tmp_path / "d.pth", {"net": data_parallel}))


# --- what lies beside ----------------------------------------------------------------------------


def lightning(**beside):
    """A checkpoint as Lightning's trainer writes it, its module holding the network in `model`."""
    return {
        "epoch": 4,
        "global_step": 500,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": under("model."),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 5}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.1)}
        },
        "optimizer_states": [
            {
                "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}},
                "param_groups": [],
            }
        ],
        "lr_schedulers": [],
        **beside,
    }


class Strange:
    """A class of somebody's training script: on no list."""

    def __init__(self):
        self.rate = 0.1


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, path=pathlib.Path("/data"), betas=(0.9, 0.999)),
    "scalar": np.float64(0.91),
    "array": np.arange(6.0).reshape(2, 3),
    "bool": np.bool_(True),
    "random state": np.random.RandomState(0).get_state(),
    "generator": np.random.default_rng(0),
    "dates": [datetime.datetime(2026, 1, 2), datetime.timedelta(hours=1), datetime.UTC],
    "paths": pathlib.PurePosixPath("/a/b"),
    "collections": [
        collections.defaultdict(list, {"a": [1]}),
        collections.deque([1, 2], maxlen=3),
        collections.Counter("aab"),
        collections.OrderedDict(a=1),
        collections.ChainMap({"a": 1}),
    ],
    "plain": [{1, 2}, frozenset({3}), 1j, b"bytes", range(3), slice(1, 2), None, 10**30],
    "simple": types.SimpleNamespace(a=1),
    "torch": [torch.Size([1, 2]), torch.float16, torch.device("cpu"), torch.get_rng_state()],
    "types": [int, str, dict],
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", BESIDE)
def test_harmless_things_beside_the_weights(tmp_path, name, legacy):
    path = tmp_path / "last.ckpt"
    content = lightning(hyper_parameters=BESIDE[name])
    loaded(save(path, content, _use_new_zipfile_serialization=not legacy))


@pytest.fixture
def foreign(monkeypatch):
    """Make a class in a module of any name, as a pickle of a package that is not installed has."""

    def make(full_name, base=object):
        module, _, name = full_name.rpartition(".")
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if path not in sys.modules:
                monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
        made = type(name, (base,), {"__module__": module, "__qualname__": name})
        monkeypatch.setattr(sys.modules[module], name, made, raising=False)
        return made

    return make


def test_configuration_containers_of_packages_that_are_not_installed(tmp_path, foreign):
    dict_config = foreign("omegaconf.dictconfig.DictConfig")
    node = foreign("omegaconf.nodes.AnyNode")
    config = dict_config()
    value = node()
    value.__dict__.update(_val=0.1, _parent=config)  # a circle, as OmegaConf has
    config.__dict__.update(_content={"lr": value}, _metadata=collections.defaultdict(dict))
    yacs = foreign("yacs.config.CfgNode", dict)(a=1)
    yacs.__dict__["frozen"] = True
    attributes = foreign("lightning_fabric.utilities.data.AttributeDict", dict)(lr=0.1)
    mmengine = foreign("mmengine.config.config.ConfigDict", dict)(model={"type": "vit"})
    for beside in (config, yacs, attributes, mmengine):
        loaded(save(tmp_path / "a.ckpt", lightning(hyper_parameters=beside)))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("omegaconf", "yacs")]:
        del sys.modules[name]
    loaded(tmp_path / "a.ckpt")


def test_a_class_on_no_list_is_named(tmp_path):
    message = refused(save(tmp_path / "a.ckpt", {"model": WEIGHTS, "args": Strange()}))
    assert "test_wrappings.Strange" in message
    assert "torch.save(model.state_dict()" in message


# --- several sets --------------------------------------------------------------------------------


def test_averaged_weights_beside_others(tmp_path):
    path = save(tmp_path / "a.pth", {"model": WEIGHTS, "model_ema": OTHERS, "epoch": 3})
    report = loaded(path)
    assert (report.taken, report.beside) == ("model", ("model_ema",))
    assert "took 'model'" in report.describe()
    assert "holds 'model_ema'" in report.describe()
    path = save(tmp_path / "b.pth", {"model": OTHERS, "model_ema": under("module.")})
    assert loaded(path, key="model_ema").taken == "model_ema"
    assert loaded(save(tmp_path / "c.pth", {"model_ema": WEIGHTS, "epoch": 3})).taken == "model_ema"
    timm = {"state_dict": WEIGHTS, "state_dict_ema": OTHERS, "args": argparse.Namespace(lr=1)}
    report = loaded(save(tmp_path / "d.pth.tar", timm))
    assert (report.taken, report.beside) == ("state_dict", ("state_dict_ema",))
    flat = {"state_dict": {**under("model."), **under("model_ema.module.", OTHERS)}}
    report = loaded(save(tmp_path / "e.ckpt", flat))
    assert (report.taken, report.beside) == ("state_dict", ("state_dict.model_ema",))


@pytest.mark.parametrize("inner", ["model", "state_dict", "module", "shadow"])
def test_an_average_in_a_container_of_its_own(tmp_path, inner):
    path = save(tmp_path / "a.pth", {"ema": {inner: OTHERS, "updates": 5}, "state_dict": WEIGHTS})
    report = loaded(path)
    assert (report.taken, report.beside) == ("state_dict", (f"ema.{inner}",))
    for key in ("ema", f"ema.{inner}"):
        other = save(tmp_path / "b.pth", {"ema": {inner: WEIGHTS}, "state_dict": OTHERS})
        assert loaded(other, key=key).taken == f"ema.{inner}"


def test_two_networks_under_two_wrappers(tmp_path):
    path = save(tmp_path / "a.ckpt", {"state_dict": {**under("model."), **under("net.", OTHERS)}})
    message = refused(path)
    assert "'model.cls_token' and 'net.cls_token'" in message
    assert "teacher.key" in message
    loaded(path, key="model")
    swapped = {**under("model.", OTHERS), **under("net.")}
    loaded(save(tmp_path / "b.ckpt", {"state_dict": swapped}), key="net")


def dino(teacher, student):
    """As DINO's main_dino.py saves: the student wrapped for data-parallel training."""
    head = {"head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_g": torch.ones(2, 1)}
    return {
        "student": under("module.backbone.", student) | {f"module.{k}": v for k, v in head.items()},
        "teacher": under("backbone.", teacher) | head,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_tiny", out_dim=65536),
        "fp16_scaler": {"scale": 65536.0},
        "dino_loss": collections.OrderedDict(center=torch.zeros(1, 2)),
    }


def dinov2(teacher, student, chunks=False):
    """As DINOv2's trainer saves: both networks in one mapping, blocks in chunks or not."""

    def chunked(tensors):
        return {
            key.replace("blocks.", f"blocks.{int(key.split('.')[1]) // 3}.") if "blocks." in key
            else key: value
            for key, value in tensors.items()
        }  # fmt: skip

    networks = {"teacher": teacher, "student": student}
    tensors = {
        f"{role}.backbone.{key}": value
        for role, own in networks.items()
        for key, value in (chunked(own) if chunks else own).items()
    }
    for role in networks:
        tensors[f"{role}.backbone.mask_token"] = torch.zeros(1, 64)
        tensors[f"{role}.dino_head.mlp.0.weight"] = torch.ones(2, 2)
        tensors[f"{role}.ibot_head.last_layer.weight_v"] = torch.ones(2, 2)
    tensors["dino_loss.center"] = tensors["ibot_patch_loss.center"] = torch.zeros(1, 2)
    return {"model": tensors, "iteration": 100, "optimizer": {"state": {}}}


def test_dino_training_files_give_their_teacher(tmp_path):
    path = save(tmp_path / "checkpoint.pth", dino(WEIGHTS, OTHERS))
    report = loaded(path)
    assert (report.taken, report.beside) == ("teacher", ("student",))
    assert report.left_out == ("head.last_layer.weight_g", "head.mlp.0.weight")
    assert "left out head (2 tensors)" in report.describe()
    path = save(tmp_path / "checkpoint.pth", dino(OTHERS, WEIGHTS))
    assert loaded(path, key="student").taken == "student"


@pytest.mark.parametrize("chunks", [False, True])
def test_dinov2_training_files_give_their_teacher(tmp_path, chunks):
    path = save(tmp_path / "model_0000100.rank_0.pth", dinov2(WEIGHTS, OTHERS, chunks))
    report = loaded(path)
    assert (report.taken, report.beside) == ("model.teacher", ("model.student",))
    named = {key.partition(".")[0] for key in report.left_out}
    assert named == {"mask_token", "dino_head", "ibot_head", "dino_loss", "ibot_patch_loss"}
    path = save(tmp_path / "other.pth", dinov2(OTHERS, WEIGHTS, chunks))
    for key in ("student", "model.student"):
        assert loaded(path, key=key).taken == "model.student"
    # What its evaluation reads: the teacher alone, with its heads.
    alone = {
        key.removeprefix("teacher."): value
        for key, value in dinov2(WEIGHTS, OTHERS, chunks)["model"].items()
        if key.startswith("teacher.")
    }
    assert loaded(save(tmp_path / "teacher_checkpoint.pth", {"teacher": alone})).taken == "teacher"


@pytest.mark.parametrize(
    "extra",
    [
        {"masked_embed": (1, 64), "head.mlp2.0.weight": (2, 2)},  # iBOT
        {
            "mask_token": (1, 1, 64),
            "decoder_blocks.0.norm1.weight": (8,),
            "decoder_pos_embed": (1,),
        },
        {"decoder.0.weight": (8, 8, 1, 1), "mask_token": (1, 1, 64)},  # SimMIM
        {"head.weight": (5, 64), "head.bias": (5,)},
        {"fc.weight": (5, 64)},
    ],
)
def test_heads_are_named_as_left_out(tmp_path, extra):
    tensors = {key: torch.zeros(shape) for key, shape in extra.items()}
    report = loaded(save(tmp_path / "a.pth", {"model": {**WEIGHTS, **tensors}}))
    assert report.left_out == tuple(sorted(extra))


def test_the_set_that_fits_is_taken(tmp_path):
    torch.manual_seed(0)
    wide = create_encoder("usfm-micro", image_size=32).backbone.state_dict()
    report = loaded(save(tmp_path / "a.pth", {"teacher": wide, "student": WEIGHTS}))
    assert (report.taken, report.beside) == ("student", ())
    flat = {**under("teacher.", wide), **under("student.")}
    assert loaded(save(tmp_path / "b.ckpt", {"state_dict": flat})).taken == "state_dict.student"


def test_no_guess_between_sets_of_unknown_names(tmp_path):
    path = save(tmp_path / "a.pth", {"first": WEIGHTS, "second": OTHERS})
    message = refused(path)
    assert "2 sets of weights" in message
    assert "'first', 'second'" in message
    assert "teacher.key" in message
    assert loaded(path, key="first").taken == "first"
    assert "Did you mean 'second'" in refused(path, key="secnd")
    assert "It holds first, second" in refused(path, key="nowhere")


def test_a_key_may_name_the_first_words_of_the_keys(tmp_path):
    content = {
        "state_dict": {**under("tower.one.trunk."), **under("tower.two.trunk.", OTHERS)},
        "epoch": 1,
    }
    path = save(tmp_path / "a.ckpt", content)
    assert "unexpected" in refused(path)
    for key in ("tower.one", "tower.one.trunk", "state_dict.tower.one.trunk."):
        loaded(path, key=key)


def test_a_key_does_not_loosen_anything(tmp_path):
    lacking = {key: value for key, value in WEIGHTS.items() if key != "cls_token"}
    path = save(
        tmp_path / "a.pth", {"one": {**lacking, "more.weight": torch.ones(1)}, "two": WEIGHTS}
    )
    message = refused(path, key="one")
    assert "1 unexpected: more.weight; 1 missing: cls_token" in message
    assert "('one')" in message
    both = save(tmp_path / "b.pth", {"model": {**WEIGHTS, **under("module.", OTHERS)}})
    assert "two tensors for one place" in refused(both, key="model")


def test_an_unknown_part_beside_the_networks_is_unexpected(tmp_path):
    content = {**under("student."), **under("teacher.", OTHERS), "memory.bank": torch.ones(2)}
    assert "unexpected: memory.bank" in refused(save(tmp_path / "a.pth", content))


# --- other files ---------------------------------------------------------------------------------


def test_whole_models_and_programs_are_refused(tmp_path):
    whole = save(tmp_path / "a.pt", SOURCE.backbone)
    message = refused(whole)
    assert "a whole pickled model" in message
    assert "torch.save(model.state_dict()" in message
    assert "whole pickled model" in refused(save(tmp_path / "b.pt", {"model": SOURCE.backbone}))
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "c.pt")
    assert "TorchScript" in refused(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b'{"weight_map": {}}', "JSON"),
        (b"\x1f\x8b\x08\x00rest", "archive"),
        (b"\0" * 257 + b"ustar" + b"\0" * 300, "archive"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x93NUMPY\x01\x00", "NumPy array"),
        (pickle.dumps({"model": [1]}), "plain pickle"),
        (b"PK\x03\x04 cut short", "not a whole PyTorch file"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "holds no state dict"),
        (b"\x08\0\0\0\0\0\0\0{broken}", "not a whole safetensors file"),
        (b"anything else", "expected .safetensors, .pth"),
    ],
)
def test_other_files_are_told_by_their_content(tmp_path, content, words):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert words in refused(path)


def test_other_archives(tmp_path):
    np.savez(tmp_path / "a.npz", weight=np.ones(2))
    assert "NumPy arrays" in refused(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.bin", "w") as archive:
        archive.writestr("model/weights.bin", b"x")
    assert "model/weights.bin" in refused(tmp_path / "b.bin")


def test_other_protocols_say_what_to_do(tmp_path):
    for legacy in (False, True):
        path = tmp_path / "a.pth"
        save(path, WEIGHTS, pickle_protocol=4, _use_new_zipfile_serialization=not legacy)
        assert "pickle protocol 4" in refused(path)


def test_a_file_cut_anywhere_is_refused_in_words(tmp_path):
    buffer = io.BytesIO()
    torch.save(lightning(hyper_parameters=argparse.Namespace(a=1)), buffer)
    whole = buffer.getvalue()
    path = tmp_path / "cut.ckpt"
    for share in np.linspace(0.001, 0.999, 25):
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path)


def test_tensors_without_numbers(tmp_path):
    meta = {key: value.to("meta") for key, value in WEIGHTS.items()}
    assert "without data" in refused(save(tmp_path / "a.pth", meta))
    sparse = {**WEIGHTS, "cls_token": WEIGHTS["cls_token"].to_sparse()}
    assert "sparse" in refused(save(tmp_path / "b.pth", sparse))
    arrays = {key: value.numpy() for key, value in WEIGHTS.items()}
    assert "no state dict" in refused(save(tmp_path / "c.pth", arrays))


# --- nothing is executed -------------------------------------------------------------------------


class Call:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def marker_calls(marker):
    text = str(marker)
    return [
        Call(os.system, f"touch {text}"),
        Call(os.mkdir, text),
        Call(eval, f"open({text!r}, 'w')"),
        Call(exec, f"open({text!r}, 'w')"),
        Call(open, text, "w"),
        Call(pathlib.Path.touch, pathlib.Path(text)),
        Call(np.save, text, np.ones(1)),
        Call(getattr, pathlib.Path(text), "touch"),
        Call(__import__("subprocess").call, ["touch", text]),
        Call(torch.save, torch.ones(1), text),
        Call(torch.hub.load, text, "x"),
        Call(np.testing.rundocs, text),
        Call(pickle.loads, pickle.dumps(Call(os.mkdir, text))),
    ]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("number", range(len(marker_calls(""))))
def test_nothing_in_a_file_is_executed(tmp_path, number, legacy):
    marker = tmp_path / "executed"
    call = marker_calls(marker)[number]
    for content in ({"model": WEIGHTS, "x": call}, {"model": {**WEIGHTS, "x": call}}, call):
        path = tmp_path / "a.ckpt"
        save(path, content, _use_new_zipfile_serialization=not legacy)
        message = refused(path)
        assert "nothing of it was run" in message
        assert not marker.exists()
        assert not marker.with_suffix(".npy").exists()


def test_a_harmless_name_is_not_called_either(tmp_path, monkeypatch):
    """A stand-in takes its place: even the real classes on the list are never touched."""
    path = save(tmp_path / "a.ckpt", {"model": WEIGHTS, "args": argparse.Namespace(a=1)})

    def fail(*_, **__):
        raise AssertionError("the real class was called")

    monkeypatch.setattr(argparse.Namespace, "__init__", fail)
    monkeypatch.setattr(argparse.Namespace, "__setattr__", fail)
    loaded(path)


def test_the_allowed_names_are_taken_back(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    loaded(save(tmp_path / "a.ckpt", {"model": WEIGHTS, "args": argparse.Namespace(a=1)}))
    refused(save(tmp_path / "b.ckpt", {"args": argparse.Namespace(a=Strange())}))
    assert set(torch.serialization.get_safe_globals()) == before
