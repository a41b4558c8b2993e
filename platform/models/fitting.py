"""Bringing a set of weights to an encoder's own keys, strictly.

Lenient loading hides the worst mistake there is with these models: built without `qkv_bias`, the
teacher swallows a published checkpoint, drops its `q_bias` and `v_bias`, and works a little worse
ever after. So missing keys, unexpected keys and other shapes raise an error that lists them.

Layouts that are understood, as published:

* USFM (openmedlab/USFM): BEiT names; `relative_position_index` is a table of constants, compared
  and left out; one bias table shared by all blocks (`rel_pos_bias.*`, the pretraining layout) is
  given to every block, as its own loader does.
* TinyUSFM (MacDunno/TinyUSFM): MAE-Lite ViT names. Its pretraining names the one norm `norm`, its
  classification `fc_norm`; either is taken for the other.
* DINOv2's training: blocks in chunks (`blocks.0.3.` is block 3).
* Around all: containers and wrappers (`weight_sets.py`), and the heads of pretraining and of
  downstream tasks, which are left out by name only.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from echostill.platform.errors import UsageError
from echostill.platform.models.encoder import Encoder
from echostill.platform.models.resampling import made_for

# Left out and reported, never anything else: classifiers (timm, BEiT, MAE-Lite, Lightning modules),
# the neck and head of TinyUSFM's segmentation model, and what pretraining keeps beside its encoder
# (MAE and MAE-Lite decoders and mask token, SimMIM's `decoder.`, BEiT's `lm_head`, iBOT's
# `masked_embed`; the heads and centres of DINO (`head.`), DINOv2 and iBOT; the projectors and
# predictors of contrastive methods; the counter of torch's AveragedModel), and, last, what
# MAE-Lite's distillation saves beside its student: the frozen teacher and the adapters.
HEAD_KEYS = (
    "head.",
    "head_dist.",
    "fc.",
    "classifier.",
    "neck.",
    "decode_head.",
    "mask_token",
    "masked_embed",
    "decoder.",
    "decoder_embed.",
    "decoder_pos_embed",
    "decoder_blocks.",
    "decoder_norm.",
    "decoder_pred.",
    "lm_head.",
    "dino_head.",
    "ibot_head.",
    "dino_loss.",
    "ibot_patch_loss.",
    "projector.",
    "predictor.",
    "projection_head.",
    "prediction_head.",
    "prototypes.",
    "queue",
    "student_head.",
    "teacher_head.",
    "n_averaged",
    "tch_model.",
    "attn_adapter.",
    "hidden_adapter.",
)
LISTED = 10

_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
_INDEX = "relative_position_index"
_CHUNK = re.compile(r"^blocks\.\d+\.(?=\d+\.)")
_BIASES = (".q_bias", ".v_bias")


class Fitted(NamedTuple):
    """A set of weights under an encoder's own keys.

    Attributes:
        tensors: exactly the encoder's keys and shapes.
        left_out: known head keys that an encoder has no use for.
        renamed: pairs (key in the file, key in the encoder) where the two layouts differ.
    """

    tensors: dict[str, Tensor]
    left_out: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]


def fit(encoder: Encoder, given: Mapping[str, Tensor], where: str) -> Fitted:
    """Bring tensors to an encoder's keys: heads out, layouts renamed, constants compared.

    Args:
        encoder: what they must fit; it is not changed, and may be on the meta device.
        given: tensors by key, without wrappers.
        where: what an error begins with: whose weights do not fit what.

    Raises:
        UsageError: a key is missing or unexpected, a shape or a constant differs; lists them.
    """
    tensors = dict(given)
    expected = encoder.backbone.state_dict()
    heads = HEAD_KEYS + _own_head(encoder)
    left_out = tuple(
        key for key in sorted(tensors) if key not in expected and key.startswith(heads)
    )
    for key in left_out:
        del tensors[key]
    renamed = _rename(tensors, expected)
    constants = {
        key: value for key, value in encoder.backbone.named_buffers() if key.endswith(_INDEX)
    }
    for key in [key for key in tensors if key.endswith(_INDEX) and key not in expected]:
        _check_constant(key, tensors, constants, where)
    _check_keys(tensors, expected, where)
    _check_shapes(tensors, encoder, where)
    return Fitted(tensors, left_out, renamed)


def check_values(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors without numbers, or with numbers that are not finite.

    Raises:
        UsageError: names them.
    """
    empty = [key for key, value in sorted(tensors.items()) if value.is_meta]
    if empty:
        raise UsageError(f"{where}; {len(empty)} without data (saved on 'meta'): {some(empty)}.")
    odd = [key for key, v in sorted(tensors.items()) if v.layout != torch.strided or v.is_quantized]
    if odd:
        raise UsageError(
            f"{where}; {len(odd)} are sparse or quantised: {some(odd)}. Save them as plain tensors."
        )
    # Widened first: the smallest float types have no test of their own.
    broken = [
        key for key, value in sorted(tensors.items()) if not torch.isfinite(value.float()).all()
    ]
    if broken:
        raise UsageError(f"{where}; {len(broken)} not finite (NaN or infinity): {some(broken)}.")


def some(items: Iterable[str]) -> str:
    """List names, the first few of many."""
    names = list(items)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _own_head(encoder: Encoder) -> tuple[str, ...]:
    """Return the key prefix of the classifier that timm cut off, by its own description."""
    described: Any = getattr(encoder.backbone, "pretrained_cfg", None) or {}
    classifier = described.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return tuple(f"{name}." for name in names)


def _rename(
    tensors: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[tuple[str, str], ...]:
    """Bring the published variants of a layout to the encoder's own, in place."""
    renamed: list[tuple[str, str]] = []
    for part in ("weight", "bias"):
        for old, new in ((f"norm.{part}", f"fc_norm.{part}"), (f"fc_norm.{part}", f"norm.{part}")):
            if new in expected and new not in tensors and old in tensors and old not in expected:
                tensors[new] = tensors.pop(old)
                renamed.append((old, new))
    tables = [key for key in expected if key.endswith("attn.relative_position_bias_table")]
    if _SHARED_TABLE in tensors and tables and not any(key in tensors for key in tables):
        shared = tensors.pop(_SHARED_TABLE)
        for key in tables:
            tensors[key] = shared
            renamed.append((_SHARED_TABLE, key))
    for old in [key for key in tensors if key not in expected and _CHUNK.match(key)]:
        new = _CHUNK.sub("blocks.", old)
        if new in expected and new not in tensors:
            tensors[new] = tensors.pop(old)
            renamed.append((old, new))
    return tuple(renamed)


def _check_constant(
    key: str, tensors: dict[str, Tensor], constants: Mapping[str, Tensor], where: str
) -> None:
    """Compare a relative position index with the encoder's own and take it out of `tensors`."""
    # The shared layout has one index beside its one table; every block's is the same.
    own = constants.get(key, next(iter(constants.values()), None))
    known = key in constants or key == f"rel_pos_bias.{_INDEX}"
    if own is None or not known:
        return  # stays, and is reported as unexpected
    value = tensors.pop(key)
    if value.shape != own.shape:
        raise UsageError(
            f"{where}: {key} has shape {tuple(value.shape)}, expected {tuple(own.shape)}. "
            "It was made for another image size."
        )
    if not own.is_meta and not torch.equal(value.to(own), own):
        raise UsageError(f"{where}: {key} orders the relative positions differently.")


def _check_keys(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    unexpected = sorted(set(tensors) - set(expected))
    missing = sorted(set(expected) - set(tensors))
    if not unexpected and not missing:
        return
    parts = []
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {some(unexpected)}")
    if missing:
        parts.append(f"{len(missing)} missing: {some(missing)}")
    hint = ""
    # Only where the biases are the difference: in another layout they are missing among others.
    if not missing and all(key.endswith(_BIASES) for key in unexpected):
        hint = " The file has query and value biases: build the model with qkv_bias=True."
    elif not unexpected and all(key.endswith(_BIASES) for key in missing):
        hint = " The file lacks the query and value biases: it was saved without qkv_bias."
    raise UsageError(f"{where}; {'; '.join(parts)}.{hint}")


def _check_shapes(tensors: Mapping[str, Tensor], encoder: Encoder, where: str) -> None:
    expected = encoder.backbone.state_dict()
    differing = [
        f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in sorted(expected)
        if tensors[key].shape != expected[key].shape
    ]
    if not differing:
        return
    side = made_for(tensors, encoder)
    hint = ""
    if side is not None and side != encoder.image_size:
        hint = (
            f" Its positions are those of {side} pixels, the model's of {encoder.image_size}: set "
            f"image_size (teacher.image_size={side}, or any other size to have them resampled)."
        )
    raise UsageError(f"{where}; {len(differing)} of another shape: {some(differing)}.{hint}")
