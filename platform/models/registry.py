"""The model zoo: which encoders there are by name, and how each is built."""

from functools import lru_cache, partial
from typing import Any

import timm
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from echostill.platform.errors import UsageError, nearest
from echostill.platform.models.encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder, Pooling
from echostill.platform.models.presets import PRESETS, Preset
from echostill.platform.models.shapes import Layer, Shapes, measure

TIMM_PREFIX = "timm:"

_MEASURED: dict[tuple[str, int], Shapes] = {}  # a plan builds a model several times


def create_encoder(
    name: str, *, image_size: int | None = None, pooling: Pooling = "mean"
) -> Encoder:
    """Build an encoder with fresh weights, drawn from torch's global generator (seed it first).

    Args:
        name: one of `model_names()`, or `timm:NAME`.
        image_size: side of the input in pixels; the model's own by default.
        pooling: what an image's feature is: the mean of its patch tokens, its class token, or what
            the model's own head pools (timm's `forward_head(pre_logits=True)`).

    Raises:
        UsageError: there is no such model, it cannot take such images or has no such pooling, or it
            gives no intermediate features.
    """
    if image_size is not None and image_size < 1:
        raise UsageError(f"image_size must be a positive number of pixels, not {image_size}.")
    if name.startswith(TIMM_PREFIX):
        return _create_timm(name, image_size, pooling)
    if name not in PRESETS:
        hint = nearest(name, [*PRESETS, *(TIMM_PREFIX + name for name in _timm_namesakes(name))])
        raise UsageError(
            f"There is no model '{name}' in the zoo.{hint} "
            f"The models are {', '.join(PRESETS)}, or timm:NAME for any timm model."
        )
    preset = PRESETS[name]
    size = image_size or preset.image_size
    if size % preset.patch_size:
        fitting = max(1, round(size / preset.patch_size)) * preset.patch_size
        raise UsageError(
            f"image_size {size} does not fit '{name}': it must be a multiple of its patch size "
            f"{preset.patch_size}, such as {fitting}."
        )
    backbone = _beit(preset, size) if preset.family == "beit" else _vit(preset, size)
    shapes = _preset_shapes(preset, size)
    return Encoder(backbone, name=name, image_size=size, pooling=pooling, shapes=shapes)


@lru_cache
def input_patches(name: str, image_size: int | None = None) -> tuple[int, int]:
    """Return a model's input side and its patch size, in pixels."""
    with torch.device("meta"):
        encoder = create_encoder(name, image_size=image_size)
    return encoder.image_size, encoder.patch_size


def sincos_position_embedding(dim: int, grid: int) -> Tensor:
    """Return the fixed 2-D sine-cosine position embedding of MAE, zero for the class token.

    Half of the channels code the column, half the row; each half holds the sines, then the
    cosines, of the position times 10000^(-2k/(dim/2)) for k = 0 .. dim/4 - 1 (He et al. 2022,
    arXiv 2111.06377, the released pos_embed.py; patches are numbered row by row).

    Args:
        dim: channels, a multiple of four.
        grid: patches along a side.

    Returns:
        (1, 1 + grid * grid, dim) float32.
    """
    if dim % 4:
        raise ValueError(f"dim must be a multiple of 4, not {dim}")
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies  # (grid, dim / 4)
    axis = torch.cat((angles.sin(), angles.cos()), dim=1)  # (grid, dim / 2)
    columns = axis[None, :, :].expand(grid, grid, -1)
    rows = axis[:, None, :].expand(grid, grid, -1)
    patches = torch.cat((columns, rows), dim=2).reshape(grid * grid, dim)
    return torch.cat((torch.zeros(1, dim, dtype=torch.float64), patches))[None].float()


def _beit(preset: Preset, image_size: int) -> nn.Module:
    # qkv_bias=True matters: without it the published q_bias and v_bias have nowhere to go, and a
    # lenient loader drops them in silence.
    backbone: nn.Module = Beit(
        img_size=image_size,
        patch_size=preset.patch_size,
        num_classes=0,
        global_pool="avg",
        embed_dim=preset.dim,
        depth=preset.depth,
        num_heads=preset.heads,
        qkv_bias=True,
        init_values=0.1,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    return backbone


def _vit(preset: Preset, image_size: int) -> nn.Module:
    # global_pool="avg" puts the one norm behind the mean (fc_norm), as TinyUSFM does downstream.
    backbone: Any = VisionTransformer(
        img_size=image_size,
        patch_size=preset.patch_size,
        num_classes=0,
        global_pool="avg",
        embed_dim=preset.dim,
        depth=preset.depth,
        num_heads=preset.heads,
        qkv_bias=True,
        class_token=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    embedding = sincos_position_embedding(preset.dim, image_size // preset.patch_size)
    with torch.no_grad():
        backbone.pos_embed.copy_(embedding)
    module: nn.Module = backbone
    return module


def _preset_shapes(preset: Preset, image_size: int) -> Shapes:
    """State the shapes of one of our own, which are plain vision transformers."""
    grid = (image_size // preset.patch_size, image_size // preset.patch_size)
    layers = (Layer(preset.dim, grid),) * preset.depth
    return Shapes(preset.dim, grid, 1, True, False, layers, True, preset.dim)


def _create_timm(name: str, image_size: int | None, pooling: Pooling) -> Encoder:
    architecture = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(architecture):
        hint = nearest(name, [TIMM_PREFIX + known for known in timm.list_models()])
        raise UsageError(
            f"timm has no model '{architecture}'.{hint} "
            "timm.list_models() in Python lists what it has."
        )
    try:
        without = torch.get_default_device().type == "meta"
        backbone = (_without_numbers if without else _timm_model)(architecture, image_size)
        published = backbone.pretrained_cfg
        size = image_size or int(published["input_size"][-1])
        # Some families keep what a pass computed: a model of its own is measured.
        known = (name, size) in _MEASURED
        probe = None if known else _without_numbers(architecture, image_size)
    except Exception as error:  # of any kind: each family checks its options in its own way
        words = " ".join(str(error).split())[:200] or type(error).__name__
        sides = "" if image_size is None else f" for image_size {image_size}"
        raise UsageError(f"'{name}' cannot be built{sides}: {words}") from error
    if probe is not None:
        _MEASURED[name, size] = measure(probe, name, size)
    return Encoder(
        backbone,
        name=name,
        image_size=size,
        mean=published.get("mean") or IMAGENET_MEAN,
        std=published.get("std") or IMAGENET_STD,
        pooling=pooling,
        shapes=_MEASURED[name, size],
    )


def _timm_model(architecture: str, image_size: int | None) -> Any:
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    if image_size is None:
        return timm.create_model(architecture, **options)
    # Only a model with a fixed token grid takes a size (and refuses any other at run time); a
    # fully convolutional one has no such option and takes every size.
    try:
        return timm.create_model(architecture, **options, img_size=image_size)
    except TypeError:
        return timm.create_model(architecture, **options)


def _without_numbers(architecture: str, image_size: int | None) -> Any:
    """Build a model on the meta device, whose tensors have shapes alone."""
    try:
        with torch.device("meta"):
            return _timm_model(architecture, image_size)
    except Exception:  # some releases compute settings with tensors, which needs their numbers
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return _timm_model(architecture, image_size).to("meta")


def _timm_namesakes(name: str) -> list[str]:
    """Return `name` if timm knows it: the likeliest slip is to leave the prefix away."""
    return [name] if timm.is_model(name) else []
