"""Weights in and out, strictly: every tensor of a file finds its place, or the file is refused.

Lenient loading hides the worst mistake there is with these models: built without `qkv_bias`, the
teacher swallows a published checkpoint, drops its `q_bias` and `v_bias`, and works a little worse
ever after. So here a key too many, a key too few or a shape that differs is an error that names it.

Layouts that are understood, as published:

* USFM (openmedlab/USFM): BEiT names; `relative_position_index` is a table of constants, compared
  and left out; one bias table shared by all blocks (`rel_pos_bias.*`, the pretraining layout) is
  given to every block, as its own loader does.
* TinyUSFM (MacDunno/TinyUSFM): MAE-Lite ViT names. Its pretraining names the one norm `norm`, its
  classification `fc_norm`; either is taken for the other.
* Around both: containers (`model`, `state_dict`, `teacher`), wrappers (`module.model.` and the
  like), and the heads of pretraining and of downstream tasks, which are left out by name only.
"""

import hashlib
import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from echostill.platform.errors import UsageError, nearest
from echostill.platform.models.encoder import Encoder
from echostill.platform.tables.atomic import atomic_write_bytes

LOGGER = logging.getLogger(__name__)

CONTAINERS = ("model", "state_dict", "teacher")
WRAPPERS = ("module.", "model.", "encoder.", "backbone.")

# Left out and reported, never anything else: classifiers (timm, BEiT, MAE-Lite), the neck and head
# of TinyUSFM's segmentation model, and what masked pretraining keeps beside its encoder
# (MAE and MAE-Lite decoders and mask token, SimMIM's `decoder.`, BEiT's `lm_head`), and, last, what
# MAE-Lite's distillation saves beside its student: the frozen teacher and the adapters.
HEAD_KEYS = (
    "head.",
    "head_dist.",
    "neck.",
    "decode_head.",
    "mask_token",
    "decoder.",
    "decoder_embed.",
    "decoder_pos_embed",
    "decoder_blocks.",
    "decoder_norm.",
    "decoder_pred.",
    "lm_head.",
    "tch_model.",
    "attn_adapter.",
    "hidden_adapter.",
)

SUFFIXES = (".safetensors", ".pth", ".pt")
_LISTED = 10
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
_INDEX = "relative_position_index"


class LoadReport(NamedTuple):
    """What `load_weights` did besides copying tensors one to one.

    Attributes:
        loaded: number of tensors the encoder took.
        left_out: known head keys of the file that an encoder has no use for.
        renamed: pairs (key in the file, key in the encoder) where the two layouts differ.
    """

    loaded: int
    left_out: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]


def load_weights(encoder: Encoder, path: str | Path) -> LoadReport:
    """Fill an encoder from a weights file, all of it or none of it.

    Args:
        encoder: any encoder of the zoo; it is unchanged if the file is refused.
        path: a .safetensors, .pth or .pt file in a published layout.

    Returns:
        What was left out and renamed; the same is logged.

    Raises:
        UsageError: the file is missing, unreadable, or does not fit the encoder exactly.
    """
    path = Path(path)
    _require_file(path)
    tensors, saved_as = _read(path)
    tensors = _strip_wrappers(tensors, path)
    expected = dict(encoder.backbone.state_dict())
    constants = {
        key: value for key, value in encoder.backbone.named_buffers() if key.endswith(_INDEX)
    }
    heads = HEAD_KEYS + _own_head(encoder)
    left_out = tuple(
        key for key in sorted(tensors) if key not in expected and key.startswith(heads)
    )
    for key in left_out:
        del tensors[key]
    renamed = _rename(tensors, expected)

    where = f"'{path}' does not fit the model '{encoder.name}'"
    if saved_as and saved_as != encoder.name:
        where = f"'{path}' holds weights of '{saved_as}' and does not fit '{encoder.name}'"
    for key in [key for key in tensors if key.endswith(_INDEX) and key not in expected]:
        _check_constant(key, tensors, constants, where)
    _check_keys(tensors, expected, where)
    _check_values(tensors, expected, where)
    encoder.backbone.load_state_dict(tensors, strict=True)
    if left_out:
        LOGGER.info("%s: left out the heads %s", path, _some(left_out))
    if renamed:
        LOGGER.info("%s: took %s", path, _some([f"{old} as {new}" for old, new in renamed]))
    return LoadReport(len(tensors), left_out, renamed)


def save_weights(encoder: Encoder, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write an encoder's weights as safetensors with the keys of the published layout.

    `usfm*` gives BEiT keys, `tinyusfm*` the keys of TinyUSFM's classification model, a timm model
    its own. The same weights and metadata give the same bytes. The file appears whole or not.

    Args:
        encoder: the encoder to save.
        path: the file to write; its name must end in .safetensors.
        metadata: text to keep in the header, beside `model` and `image_size`, which are added.

    Raises:
        UsageError: the file name has another suffix.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"Weights are written as .safetensors, not as '{path.name}'.")
    tensors = {
        key: value.detach().to("cpu").contiguous()
        for key, value in encoder.backbone.state_dict().items()
    }
    about = {**metadata, "model": encoder.name, "image_size": str(encoder.image_size)}
    content = _sorted_header(safetensors.torch.save(tensors, {"format": "pt", **about}))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, content)


def weights_digest(path: str | Path) -> str:
    """Return the SHA-256 of a weights file in hexadecimal, for the fingerprint of a run."""
    path = Path(path)
    _require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise UsageError(f"'{path}' is a folder; name the weights file inside it.")
    folder = path.parent
    if not folder.is_dir():
        siblings = [entry.name for entry in folder.parent.glob("*") if entry.is_dir()]
        hint = nearest(folder.name, siblings)
        raise UsageError(f"There is no weights file '{path}': no folder '{folder}'.{hint}")
    hint = nearest(path.name, [entry.name for entry in folder.iterdir() if entry.is_file()])
    raise UsageError(f"There is no weights file '{path}'.{hint}")


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a file by their keys, and the model it says it holds ('' if none)."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"'{path}' is not a weights file: expected {', '.join(SUFFIXES)}.")
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                saved_as = (file.metadata() or {}).get("model", "")
                return {key: file.get_tensor(key) for key in file.keys()}, saved_as  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise UsageError(f"'{path}' is not a whole safetensors file: {error}") from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"'{path}' holds more than tensors (or is damaged), and loading it could run foreign "
            "code. Open it where you trust it and save its state dict alone."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UsageError(f"'{path}' is not a whole PyTorch file: {error}") from error
    for _ in CONTAINERS:
        inner = next(
            (name for name in CONTAINERS if isinstance(content, Mapping) and name in content), None
        )
        if inner is None or not isinstance(content[inner], Mapping):
            break
        content = content[inner]
    if not isinstance(content, Mapping) or not content:
        raise UsageError(
            f"'{path}' holds no state dict: expected tensors by name, at the top or under one of "
            f"{', '.join(CONTAINERS)}."
        )
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise UsageError(
            f"'{path}' holds things that are not tensors beside its weights: {_some(strange)}. "
            "Save its state dict alone."
        )
    return {str(key): value for key, value in content.items()}, ""


def _strip_wrappers(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    stripped: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = key
        while name.startswith(WRAPPERS):
            name = name.split(".", 1)[1]
        if name in stripped:
            raise UsageError(
                f"'{path}' holds two tensors for '{name}' (one of them '{key}'): it is not clear "
                "which model to take. Save one of them alone."
            )
        stripped[name] = value
    return stripped


def _own_head(encoder: Encoder) -> tuple[str, ...]:
    """Return the key prefix of the classifier that timm cut off, by its own description."""
    described: Any = getattr(encoder.backbone, "pretrained_cfg", None) or {}
    classifier = described.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return tuple(f"{name}." for name in names)


def _rename(
    tensors: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[tuple[str, str], ...]:
    """Bring the two published variants of a layout to the encoder's own, in place."""
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
        parts.append(f"{len(unexpected)} unexpected: {_some(unexpected)}")
    if missing:
        parts.append(f"{len(missing)} missing: {_some(missing)}")
    biases = ("q_bias", "v_bias")
    hint = ""
    if any(key.endswith(biases) for key in unexpected):
        hint = " The file has query and value biases: build the model with qkv_bias=True."
    elif any(key.endswith(biases) for key in missing):
        hint = " The file lacks the query and value biases: it was saved without qkv_bias."
    raise UsageError(f"{where}; {'; '.join(parts)}.{hint}")


def _check_values(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str
) -> None:
    differing = [
        f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in sorted(expected)
        if tensors[key].shape != expected[key].shape
    ]
    if differing:
        raise UsageError(f"{where}; {len(differing)} of another shape: {_some(differing)}.")
    broken = [key for key in sorted(tensors) if not bool(torch.isfinite(tensors[key]).all())]
    if broken:
        raise UsageError(f"{where}; {len(broken)} not finite (NaN or infinity): {_some(broken)}.")


def _some(items: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more


def _sorted_header(content: bytes) -> bytes:
    """Rewrite a safetensors file with its header's keys in order.

    The library writes the metadata in an order that differs from one process to the next, which
    would give one set of weights many digests. Format: 8 bytes little-endian length of the JSON
    header, the header padded with spaces to a multiple of 8, the data (safetensors, "Format").
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
