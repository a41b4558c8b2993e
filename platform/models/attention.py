"""What an encoder's attention layers make of a batch: queries, keys, values and logits.

Fused attention never forms its logits, so they are made again here from the layer's input.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from echostill.platform.errors import UsageError
from echostill.platform.models.encoder import Encoder


class AttentionParts(NamedTuple):
    """Queries, keys and values of one attention layer over N tokens, prefix tokens first."""

    query: Tensor  # (B, heads, N, d)
    key: Tensor  # (B, heads, N, d)
    value: Tensor  # (B, heads, N, d)
    bias: Tensor | None  # (1, heads, N, N) relative position bias, where the layer has one

    def logits(self) -> Tensor:
        """Return q k^T / sqrt(d) plus the position bias: (B, heads, N, N), before the softmax."""
        scaled: Tensor = self.query @ self.key.transpose(-2, -1) / self.query.shape[-1] ** 0.5
        return scaled if self.bias is None else scaled + self.bias

    def with_heads(self, heads: int) -> "AttentionParts":
        """Return the same channels split into another number of heads, without the bias.

        TinyMIM changes the student's heads to the teacher's; here only the split changes.
        """

        def split(rows: Tensor) -> Tensor:
            batch, _, count, _ = rows.shape
            together = rows.transpose(1, 2).reshape(batch, count, -1)
            return together.reshape(batch, count, heads, -1).transpose(1, 2)

        return AttentionParts(split(self.query), split(self.key), split(self.value), None)


def attention_layer(encoder: Encoder, layer: int) -> Any:
    """Return the attention module of a block, counted from 1.

    Raises:
        UsageError: The encoder has no such block, or it is not one of a plain transformer.
    """
    blocks = getattr(encoder.backbone, "blocks", None)
    if blocks is None or not 1 <= layer <= len(blocks):
        raise UsageError(f"'{encoder.name}' has no attention in a block {layer} to match.")
    module = getattr(blocks[layer - 1], "attn", None)
    if module is None or not hasattr(module, "qkv") or not hasattr(module, "num_heads"):
        raise UsageError(
            f"the attention of '{encoder.name}' has no joint query, key and value layer: match its "
            "tokens instead (attention_weight=0 relation_weight=0)."
        )
    return module


def attention_heads(encoder: Encoder, layer: int) -> int:
    """Return the number of heads of a block's attention."""
    return int(attention_layer(encoder, layer).num_heads)


@contextmanager
def capture_attention(encoder: Encoder, layers: Sequence[int]) -> Iterator[list[AttentionParts]]:
    """Collect the attention parts of some blocks while the encoder runs once.

    Yields:
        A list that holds one entry per layer, in the order of ``layers``, once it has run.
    """
    found: dict[int, Tensor] = {}
    parts: list[AttentionParts] = []
    modules = {layer: attention_layer(encoder, layer) for layer in layers}
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, layer=layer: found.__setitem__(layer, inputs[0])
        )
        for layer, module in modules.items()
    ]
    try:
        yield parts
        parts.extend(_parts(modules[layer], found[layer]) for layer in layers)
    finally:
        for handle in handles:
            handle.remove()


def _parts(module: Any, tokens: Tensor) -> AttentionParts:
    weight, bias = module.qkv.weight, module.qkv.bias
    if getattr(module, "q_bias", None) is not None:  # BEiT: queries and values have a bias alone
        bias = torch.cat([module.q_bias, module.k_bias, module.v_bias])
    joint = functional.linear(tokens, weight, bias)
    batch, count, _ = joint.shape
    query, key, value = (
        joint.reshape(batch, count, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    )
    if hasattr(module, "q_norm"):
        query, key = module.q_norm(query), module.k_norm(key)
    position = None
    if getattr(module, "relative_position_bias_table", None) is not None:
        position = module._get_rel_pos_bias()
    return AttentionParts(query, key, value, position)
