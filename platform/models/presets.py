"""The shapes of our own encoders and what they cost, without building them.

Listing the models must not wait for torch. The tests compare these formulas with the parameters and
operations counted on the built encoders (``complexity``).
"""

from dataclasses import dataclass
from typing import Any

_CHANNELS = 3
_HIDDEN = 4  # widths of the layer inside a block's perceptron


@dataclass(frozen=True)
class Preset:
    """The shape of one of our own encoders."""

    family: str  # "beit" (the published teacher's class) or "vit" (the published student's)
    image_size: int
    dim: int
    depth: int
    heads: int
    patch_size: int = 16

    @property
    def _grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def _tokens(self) -> int:
        return self._grid**2 + 1  # the patches and the class token

    @property
    def _patch_weights(self) -> int:
        return _CHANNELS * self.patch_size**2 * self.dim

    @property
    def _block_weights(self) -> int:
        """Weights of the matrices of a block: query, key, value, output, and the perceptron's."""
        return (4 + 2 * _HIDDEN) * self.dim**2

    @property
    def parameters(self) -> int:
        """Number of parameters, without a head."""
        # Of a block: two norms, and the biases of output and perceptron.
        vectors = (4 + 2 + _HIDDEN) * self.dim
        if self.family == "beit":
            vectors += (2 + 2) * self.dim  # biases of query and value; two layer scales
            vectors += ((2 * self._grid - 1) ** 2 + 3) * self.heads  # relative position bias
            positions = 0
        else:
            vectors += 3 * self.dim  # biases of query, key and value
            positions = self._tokens * self.dim
        embedding = self._patch_weights + self.dim + self.dim  # bias and class token
        norm = 2 * self.dim
        return embedding + positions + self.depth * (self._block_weights + vectors) + norm

    @property
    def gflops_paper(self) -> float:
        """2 x MACs of linear and convolution layers for one image, in 10^9."""
        return 2 * self._layer_products / 1e9

    @property
    def gflops(self) -> float:
        """All matrix and convolution operations for one image, in 10^9."""
        attention = self.depth * 2 * self._tokens**2 * self.dim
        return 2 * (self._layer_products + attention) / 1e9

    @property
    def _layer_products(self) -> int:
        blocks = self.depth * self._tokens * self._block_weights
        return self._grid**2 * self._patch_weights + blocks


# usfm: openmedlab/USFM configs/model/Cls/vit.yaml. tinyusfm: MacDunno/TinyUSFM; twelve heads of 16
# channels, not the three of the usual ViT-Tiny. The micro presets are ours, for a laptop.
PRESETS: dict[str, Preset] = {
    "usfm": Preset("beit", image_size=224, dim=768, depth=12, heads=12),
    "tinyusfm": Preset("vit", image_size=224, dim=192, depth=12, heads=12),
    "usfm-micro": Preset("beit", image_size=128, dim=128, depth=6, heads=4),
    "tinyusfm-micro": Preset("vit", image_size=128, dim=64, depth=6, heads=4),
}


def model_names() -> list[str]:
    """Return the names of our own encoders; besides them `timm:NAME` names any timm model."""
    return list(PRESETS)


def describe_models() -> list[dict[str, Any]]:
    """Return name, cost and shape of each of our own encoders."""
    return [
        {
            "name": name,
            "parameters": preset.parameters,
            "gflops_paper": round(preset.gflops_paper, 4),
            "gflops": round(preset.gflops, 4),
            "image_size": preset.image_size,
            "patch_size": preset.patch_size,
            "dim": preset.dim,
            "depth": preset.depth,
        }
        for name, preset in PRESETS.items()
    ]
