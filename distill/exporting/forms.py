"""The forms that hold weights alone: ours, the published TinyUSFM layout, plain timm."""

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echostill.platform.errors import UsageError
from echostill.platform.models import Encoder, save_weights
from echostill.platform.models.exported import FILES, TIMM_ARGUMENTS
from echostill.platform.models.presets import PRESETS
from echostill.platform.models.registry import TIMM_PREFIX

PUBLISHED_PREFIX = "model."  # the attribute that holds the ViT in the published TinyUSFM class


def write_ours(encoder: Encoder, folder: Path, about: dict[str, str]) -> list[str]:
    """Write ``model.safetensors``: the backbone's own keys, the model's name in the header."""
    name = FILES["safetensors"]
    save_weights(encoder, folder / name, about)
    return [name]


def write_published(encoder: Encoder, folder: Path, about: dict[str, str]) -> list[str]:
    """Write the layout of the published TinyUSFM checkpoint, as .pth and as .safetensors.

    A flat mapping whose keys are those of the published class (MacDunno/TinyUSFM,
    ``TinyUSFM(num_classes=0, global_pool=True)``): ``model.cls_token`` to ``model.fc_norm.bias``.
    Its classification loader takes them as they are, its segmentation loader looks for ``model.``.

    Raises:
        UsageError: The encoder is not of TinyUSFM's class.
    """
    preset = PRESETS.get(encoder.name)
    if preset is None or preset.family != "vit":
        known = [name for name, preset in PRESETS.items() if preset.family == "vit"]
        raise UsageError(
            f"'{encoder.name}' has no TinyUSFM layout: it is for {', '.join(known)}. "
            "Use the form timm or safetensors."
        )
    tensors = published_state(encoder)
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    pickled = FILES["tinyusfm"]
    (folder / pickled).write_bytes(buffer.getvalue())
    safe = Path(pickled).with_suffix(".safetensors").name
    _write_tensors(tensors, folder / safe, about)
    return [pickled, safe]


def published_state(encoder: Encoder) -> dict[str, Tensor]:
    """Return the encoder's weights under the published TinyUSFM keys."""
    return {
        f"{PUBLISHED_PREFIX}{key}": value.detach().cpu().contiguous()
        for key, value in encoder.backbone.state_dict().items()
    }


def write_timm(encoder: Encoder, folder: Path, about: dict[str, str]) -> list[str]:
    """Write a plain timm state dict, and beside it what ``timm.create_model`` wants to take it."""
    architecture, arguments = timm_arguments(encoder)
    tensors = {
        key: value.detach().cpu().contiguous()
        for key, value in encoder.backbone.state_dict().items()
    }
    name = FILES["timm"]
    _write_tensors(tensors, folder / name, about)
    written = {
        "architecture": architecture,
        "arguments": arguments,
        # Ours pool as they were made to; another timm model may have a pooling of its own.
        "pools_itself": encoder.name in PRESETS,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
    }
    (folder / TIMM_ARGUMENTS).write_text(json.dumps(written, indent=1), encoding="utf-8")
    return [name, TIMM_ARGUMENTS]


def timm_arguments(encoder: Encoder) -> tuple[str, dict[str, Any]]:
    """Return timm's name of the architecture and the arguments that give this encoder's shape."""
    preset = PRESETS.get(encoder.name)
    if preset is None:
        sized = "img_size" if hasattr(encoder.backbone, "pos_embed") else None
        options: dict[str, Any] = {"num_classes": 0}
        if sized:
            options[sized] = encoder.image_size
        return encoder.name.removeprefix(TIMM_PREFIX), options
    shape = {
        "img_size": encoder.image_size,
        "patch_size": preset.patch_size,
        "embed_dim": preset.dim,
        "depth": preset.depth,
        "num_heads": preset.heads,
        "global_pool": "avg",
        "num_classes": 0,
    }
    architecture = "beit_base_patch16_224" if preset.family == "beit" else "vit_tiny_patch16_224"
    return architecture, shape


def _write_tensors(tensors: dict[str, Tensor], path: Path, about: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, {"format": "pt", **about})
