"""Weights in and out: a file of any kind into an encoder, an encoder into safetensors."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from echostill.platform.errors import UsageError, nearest
from echostill.platform.models.checkpoints import read_file
from echostill.platform.models.encoder import Encoder
from echostill.platform.models.fitting import check_values, fit, some
from echostill.platform.models.resampling import made_for, resample, sized_for
from echostill.platform.models.weight_sets import WeightSet, choose_set, find_named, find_sets
from echostill.platform.tables.atomic import atomic_write_bytes

LOGGER = logging.getLogger(__name__)


class LoadReport(NamedTuple):
    """What `load_weights` did besides copying tensors one to one.

    Attributes:
        loaded: number of tensors the encoder took.
        left_out: known head keys of the file that an encoder has no use for.
        renamed: pairs (key in the file, key in the encoder) where the two layouts differ.
        taken: name of the set of weights that was taken; empty where it is the file's only one,
            at its top.
        beside: names of the other sets of weights in the file that fit the encoder too.
        made_for: input side in pixels that the weights were made for, where their positions were
            resampled to the encoder's; else None.
    """

    loaded: int
    left_out: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    taken: str = ""
    beside: tuple[str, ...] = ()
    made_for: int | None = None

    def describe(self) -> str:
        """Say in words which weights were taken and which were not; empty where all were."""
        parts = []
        if self.taken:
            parts.append(f"took '{self.taken}'")
        if self.beside:
            others = ", ".join(f"'{name}'" if name else "one at its top" for name in self.beside)
            parts.append(f"beside it the file holds {others}")
        if self.left_out:
            stems = dict.fromkeys(key.partition(".")[0] for key in self.left_out)
            parts.append(f"left out {some(stems)} ({len(self.left_out)} tensors)")
        if self.made_for:
            parts.append(f"positions resampled from {self.made_for} pixels")
        return "; ".join(parts)


def load_weights(
    encoder: Encoder, path: str | Path, *, key: str | None = None, resample_positions: bool = False
) -> LoadReport:
    """Fill an encoder from a weights file, all of it or none of it.

    Args:
        encoder: any encoder of the zoo; it is unchanged if the file is refused.
        path: a safetensors or PyTorch file, whatever its suffix, in a published layout. Nothing in
            it is executed.
        key: which set of weights to take where the file holds several, such as `model_ema`; by
            default the one that fits, and of several `model` or `state_dict` before others.
        resample_positions: whether positions made for another input size are resampled to the
            encoder's, by timm's own method for the model; otherwise they are refused.

    Returns:
        What was taken, left out and renamed; the same is logged.

    Raises:
        UsageError: the file is missing, unreadable, or does not fit the encoder exactly.
    """
    fitting = _fitting(encoder, path, key, resample_positions)
    tensors, report = fitting.tensors, fitting.report
    if fitting.source is not None:
        fitting.source.backbone.load_state_dict(tensors, strict=True)
        tensors = resample(fitting.source, encoder.image_size)
    encoder.backbone.load_state_dict(tensors, strict=True)
    if report.describe():
        LOGGER.info("%s: %s", path, report.describe())
    if report.left_out:
        LOGGER.info("%s: left out %s", path, some(report.left_out))
    if report.renamed:
        LOGGER.info("%s: took %s", path, some(f"{old} as {new}" for old, new in report.renamed))
    return report


def check_weights(
    encoder: Encoder, path: str | Path, *, key: str | None = None, resample_positions: bool = False
) -> LoadReport:
    """See that a file fits an encoder, which may be one without storage, and load nothing.

    Arguments, result and errors are those of :func:`load_weights`, but that an encoder without
    storage has no table of relative positions to compare: loading compares it.
    """
    return _fitting(encoder, path, key, resample_positions).report


class _Fitting(NamedTuple):
    """What of a file goes into an encoder."""

    tensors: Mapping[str, Tensor]
    report: LoadReport
    source: Encoder | None  # of the input size that the weights were made for, if another one


def _fitting(
    encoder: Encoder, path: str | Path, key: str | None, resample_positions: bool
) -> _Fitting:
    path = Path(path)
    _require_file(path)
    content = read_file(path)
    chosen, beside = _choose(encoder, path, content.values, key, resample_positions)
    name = f"'{path}' ('{chosen.name}')" if chosen.name else f"'{path}'"
    where = f"{name} does not fit the model '{encoder.name}'"
    if content.model and content.model != encoder.name:
        where = f"{name} holds weights of '{content.model}' and does not fit '{encoder.name}'"
    side = _other_size(encoder, chosen) if resample_positions else None
    source = None
    if side is not None:
        # Beside an encoder without storage, one of another input size needs none either.
        with torch.device(next(encoder.parameters()).device):
            source = sized_for(encoder, side)
    fitted = fit(source or encoder, chosen.tensors, where)
    check_values(fitted.tensors, where)
    count = len(encoder.backbone.state_dict()) if source else len(fitted.tensors)
    report = LoadReport(count, fitted.left_out, fitted.renamed, chosen.name, beside, side)
    return _Fitting(fitted.tensors, report, source)


def _choose(
    encoder: Encoder, path: Path, values: Any, key: str | None, resample_positions: bool
) -> tuple[WeightSet, tuple[str, ...]]:
    """Choose the set of weights to load; return it and the names of the others that fit."""
    expected = encoder.backbone.state_dict()
    fitting: list[WeightSet] = []
    chosen: WeightSet | None
    if key is not None:
        try:
            chosen = find_named(values, key, expected)
        except UsageError as error:
            raise UsageError(f"'{path}': {error}") from None
    else:
        sets = find_sets(values, expected)
        if not sets:
            raise UsageError(
                f"'{path}' holds no state dict: expected tensors by name, at the top or in a "
                "container such as model or state_dict."
            )
        fitting = [each for each in sets if _fits(encoder, each, resample_positions)]
        chosen = choose_set(sets, fitting, expected)
    if chosen is None:
        names = ", ".join(f"'{each.name}'" for each in fitting)
        raise UsageError(
            f"'{path}' holds {len(fitting)} sets of weights that fit '{encoder.name}': {names}. "
            "Say which one to take: key=NAME (teacher.key=NAME in a configuration)."
        )
    if chosen.twice:
        first, second = chosen.twice
        raise UsageError(
            f"'{path}' holds two tensors for one place, '{first}' and '{second}': it is not clear "
            "which model to take. Name the first words of its keys (teacher.key), or save one of "
            "them alone."
        )
    if chosen.strange:
        raise UsageError(
            f"'{path}' holds things that are not tensors beside its weights: "
            f"{some(chosen.strange)}. Save its state dict alone."
        )
    return chosen, tuple(each.name for each in fitting if each is not chosen)


def _fits(encoder: Encoder, candidate: WeightSet, resample_positions: bool) -> bool:
    if candidate.strange or candidate.twice:
        return False
    try:
        side = _other_size(encoder, candidate) if resample_positions else None
        with torch.device("meta"):
            source = encoder if side is None else sized_for(encoder, side)
        fit(source, candidate.tensors, "")
    except UsageError:
        return False
    return True


def _other_size(encoder: Encoder, chosen: WeightSet) -> int | None:
    """Return the input side that weights were made for, if it is not the encoder's."""
    side = made_for(chosen.tensors, encoder)
    return None if side == encoder.image_size else side


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
