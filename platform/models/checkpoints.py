"""Reading a weights file, whatever its name is: safetensors or a PyTorch file, told by content.

Nothing in a file is executed: PyTorch files are read by torch's restricted unpickler, with inert
stand-ins for the harmless things that training scripts save beside the weights (`inert.py`).
"""

import pickle
import threading
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch

from echostill.platform.errors import UsageError
from echostill.platform.models import inert

EXPECTED = ".safetensors, .pth, .pt, .bin, .ckpt or .pth.tar, by content"
_LISTED = 10
# What torch's restricted unpickler takes by itself; only to name the others in an error.
_TORCH_OWN = ("torch.", "collections.OrderedDict", "collections.Counter", "_codecs.encode")
_MODULES = ("torch.nn.modules.", "torch.nn.parallel.", "timm.models.")
_ZIP, _PICKLE, _TAR_OFFSET = b"PK\x03\x04", b"\x80", 257
_LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # torch's magic number as a pickle

# The list of allowed names belongs to the process: two loads at a time would share it.
_ALLOWED = threading.Lock()


class Content(NamedTuple):
    """What a weights file holds."""

    values: Any  # tensors by name, or a container of such mappings, or anything else
    model: str = ""  # the model that it says it holds


def read_file(path: Path) -> Content:
    """Read a weights file.

    Raises:
        UsageError: It is damaged, of another kind, or holds what cannot be read safely; says what
            it is and what to do.
    """
    with path.open("rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    if _is_safetensors(head, size):
        return _read_safetensors(path)
    if head.startswith(_ZIP) or (head.startswith(_PICKLE) and _LEGACY_MAGIC in head[:32]):
        return Content(_read_torch(path, archive=head.startswith(_ZIP)))
    raise UsageError(f"'{path}' {_other_kind(path, head, size)}")


def _is_safetensors(head: bytes, size: int) -> bool:
    if len(head) < 9 or head[8:9] != b"{":
        return False
    length = int.from_bytes(head[:8], "little")
    return 2 <= length <= size - 8


def _read_safetensors(path: Path) -> Content:
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            model = (file.metadata() or {}).get("model", "")
            return Content({key: file.get_tensor(key) for key in file.keys()}, model)  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise UsageError(f"'{path}' is not a whole safetensors file: {error}") from error


def _read_torch(path: Path, *, archive: bool) -> Any:
    if archive:
        _check_archive(path)
    try:
        with path.open("rb") as file:
            pickled = inert.read_names(file)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UsageError(f"'{path}' is not a whole PyTorch file: {_line(error)}") from error
    if not inert.reads_protocol(pickled):
        raise UsageError(
            f"'{path}' was saved with pickle protocol {pickled.protocol}, and only protocol 2 can "
            "be read without running foreign code. Where you trust the file, save it again: "
            "torch.save(torch.load(FILE, weights_only=False), NEW)."
        )
    stand_ins: list[Any] = [inert.stand_in(n) for n in pickled.names if inert.is_harmless(n)]
    try:
        # A handle, not a path: torch goes by the suffix of a path.
        with _ALLOWED, torch.serialization.safe_globals(stand_ins), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(_refusal(path, pickled)) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise UsageError(f"'{path}' is not a whole PyTorch file: {_line(error)}") from error


def _check_archive(path: Path) -> None:
    """Refuse zip archives of other kinds, which torch answers with words of its own."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise UsageError(f"'{path}' is not a whole PyTorch file: {_line(error)}") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise UsageError(
            f"'{path}' is a TorchScript program, not weights. Save the state dict of the model "
            "that it was made from."
        )
    if any(name.endswith(".npy") for name in names):
        raise UsageError(
            f"'{path}' is an archive of NumPy arrays. Save them as tensors by name, such as with "
            "safetensors.numpy.save_file."
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise UsageError(
            f"'{path}' is a zip archive of something else ({_some(sorted(names)[:3])}). Unpack it, "
            "and name the weights file inside."
        )


def _refusal(path: Path, pickled: inert.Pickled) -> str:
    """Say why a file is refused: by the names in it that are on no list."""
    foreign = sorted(
        name
        for name in pickled.names
        if not inert.is_harmless(name)
        and (name.startswith(_MODULES) or not name.startswith(_TORCH_OWN))
        and name not in ("builtins.set", "builtins.complex", "builtins.bytearray")
    )
    whole = any(name.startswith(_MODULES) for name in foreign)
    what = "a whole pickled model" if whole else "more than tensors and harmless settings"
    named = f": {_some(foreign)}" if foreign else " (or is damaged)"
    return (
        f"'{path}' holds {what}{named}. Loading that could run foreign code, so nothing of it was "
        "run. Open it where you trust it and save its state dict alone: "
        "torch.save(model.state_dict(), 'weights.pth')."
    )


def _other_kind(path: Path, head: bytes, size: int) -> str:
    """Say what a file is that holds no weights, as far as its first bytes tell."""
    start = head.lstrip().lower()
    if size == 0:
        return f"is empty: expected {EXPECTED}."
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights: fetch them with `git lfs pull`."
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not weights: the download failed."
    if start.startswith(b"{"):
        return "is JSON text, not weights: name the file that holds the tensors."
    if head[_TAR_OFFSET : _TAR_OFFSET + 5] == b"ustar" or head.startswith((b"\x1f\x8b", b"BZh")):
        return "is an archive (tar or compressed): unpack it, and name the weights file inside."
    if head.startswith(b"\x89HDF"):
        return "is an HDF5 file (Keras, TensorFlow): convert it to safetensors first."
    if head.startswith(b"\x93NUMPY"):
        return "is a NumPy array, not weights by name."
    if head.startswith(_PICKLE):
        return (
            "is a plain pickle (or a damaged PyTorch file), which is not read: it could run "
            "foreign code. Open it where you trust it and save it with torch.save or as "
            "safetensors."
        )
    return f"is not a weights file: expected {EXPECTED}."


def _line(error: BaseException) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words[:200]


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
