"""Training images as one memory-mapped array: decoded once, read in any order without parsing.

The array is square (the whole image, as evaluation sees it) and a little larger than the model's
input, so that crops keep their sharpness. It is a cache: named by what it holds, made again when
missing, by one process of a node while the others wait and then map the same file. An image that
cannot be decoded is left out: the stage that scores it names it.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from echostill.platform.errors import EchostillError
from echostill.platform.imaging.images import DecodeError, decode_staged, to_square
from echostill.platform.tables.atomic import (
    UNFINISHED,
    atomic_write,
    atomic_write_bytes,
    locked,
)
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.store import describe_bytes
from echostill.platform.tables.table import Table

MARGIN = 8 / 7  # 256 pixels for a model of 224
WORDS = ".words.json"
UNUSED_DAYS = 14  # after which an array goes, when another is staged beside it


@dataclass(frozen=True)
class StagedImages:
    """Images by row: ``pixels`` (N, C, side, side) uint8, C is 1 (all grey) or 3."""

    pixels: np.ndarray
    image_ids: list[str]
    organs: list[str]
    devices: list[str] = field(default_factory=list)  # empty where they are not known

    @cached_property
    def organ_codes(self) -> np.ndarray:
        """The organs as numbers, (N,) int64."""
        return np.unique(self.organs, return_inverse=True)[1].astype(np.int64)

    def __len__(self) -> int:
        return len(self.image_ids)


def staged_side(image_size: int) -> int:
    """Side in pixels at which images for a model of ``image_size`` are staged."""
    return round(image_size * MARGIN)


def cache_folder(store: str) -> Path:
    """Folder for staged arrays: ``ECHOSTILL_CACHE``, else in a local store or on the node's disk.

    It should lie on a fast disk: training reads from it in random order.
    """
    override = os.environ.get("ECHOSTILL_CACHE")
    if override:
        return Path(override)
    storage = Storage(store)
    if storage.is_local:
        return Path(storage.local_path("cache"))
    return Path(tempfile.gettempdir()) / "echostill-cache"


def stage_images(
    pool: Table, store: str, image_size: int, image_ids: Sequence[str] | None = None
) -> StagedImages:
    """Stage the pool's images (or the named ones), in the order of their ids.

    Args:
        pool: The pool table.
        store: Store whose cache folder is used.
        image_size: Input side of the model.
        image_ids: Ids to stage; all where None.

    Raises:
        EchostillError: A named id is not in the pool, or no image can be decoded.
    """
    side = staged_side(image_size)
    wanted = sorted(image_ids if image_ids is not None else _ids(pool))
    key = sha256("\n".join([pool.digest, str(side), *wanted]).encode())[:20]
    folder = cache_folder(store)
    folder.mkdir(parents=True, exist_ok=True)
    array_path, words_path = folder / f"{key}.npy", folder / f"{key}{WORDS}"
    with locked(_lock(folder, key)):
        if not (array_path.exists() and words_path.exists()):
            for unfinished in folder.glob(f"{key}.*{UNFINISHED}"):  # of one that was killed
                unfinished.unlink(missing_ok=True)
            channels = 3 if _any_colour(pool, set(wanted)) else 1
            _make_room(folder, key, len(wanted) * channels * side**2)
            with atomic_write(array_path) as temporary:
                words = _write(pool, wanted, (channels, side, side), temporary)
            atomic_write_bytes(words_path, json.dumps(words).encode())
        with contextlib.suppress(OSError):  # a cache of others may be read and not touched
            os.utime(words_path)
        words = json.loads(words_path.read_text())
        pixels = np.load(array_path, mmap_mode="r")
    return StagedImages(
        pixels[: len(words["ids"])], words["ids"], words["organs"], words["devices"]
    )


def _lock(folder: Path, key: str) -> Path:
    return folder / f"{key}.lock"


def _make_room(folder: Path, key: str, needed: int) -> None:
    """Delete arrays that were long not used, and where the disk is full those used least recently.

    A process that has mapped one keeps what it sees.

    Raises:
        EchostillError: The disk is too small.
    """
    others = sorted(
        (path.stat().st_mtime, path.name.removesuffix(WORDS))
        for path in folder.glob(f"*{WORDS}")
        if path.name != f"{key}{WORDS}"
    )
    for used, other in others:
        full = shutil.disk_usage(folder).free < needed
        if full or time.time() - used > UNUSED_DAYS * 86_400:
            with locked(_lock(folder, other)):
                (folder / f"{other}{WORDS}").unlink(missing_ok=True)
                (folder / f"{other}.npy").unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EchostillError(
            f"staging the images needs {describe_bytes(needed)}, and the disk of '{folder}' has "
            f"{describe_bytes(free)} left: set ECHOSTILL_CACHE to a folder on a larger disk."
        )


def _ids(pool: Table) -> list[str]:
    return list(pool.read(["image_id"])["image_id"].to_pylist())


def _write(
    pool: Table, wanted: list[str], shape: tuple[int, int, int], target: Path
) -> dict[str, list[str]]:
    """Write the array; return ids, organs and devices of its first rows, which hold the images."""
    position = {image_id: row for row, image_id in enumerate(wanted)}
    channels, side, _ = shape
    array = np.lib.format.open_memmap(
        target, mode="w+", dtype=np.uint8, shape=(len(wanted), *shape)
    )
    found = 0
    organs, devices = [""] * len(wanted), [""] * len(wanted)
    whole = np.zeros(len(wanted), dtype=bool)

    def fill(image_id: str, organ: str | None, device: str | None, data: bytes) -> bool:
        row = position.get(image_id)
        if row is None:
            return False
        organs[row], devices[row] = organ or "", device or ""
        with contextlib.suppress(DecodeError):
            array[row] = to_square(decode_staged(data), side)[:channels]
            whole[row] = True
        return True

    # Decoders release the interpreter's lock, and each image has its own place.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for part in pool.parts(["image_id", "organ", "device", "image"]):
            columns = [part[name].to_pylist() for name in ("image_id", "organ", "device", "image")]
            found += sum(threads.map(fill, *columns))
    kept = np.flatnonzero(whole).tolist()
    for place, row in enumerate(kept):
        if place != row:  # close the gap that a damaged image leaves
            array[place] = array[row]
    array.flush()
    if found != len(wanted):
        raise EchostillError(
            f"{len(wanted) - found} of {len(wanted)} images are not in the pool "
            f"'{pool.storage.root}': select again from this pool."
        )
    if not kept:
        raise EchostillError(f"none of {len(wanted)} images of '{pool.storage.root}' is readable.")
    return {
        "ids": [wanted[row] for row in kept],
        "organs": [organs[row] for row in kept],
        "devices": [devices[row] for row in kept],
    }


def _any_colour(pool: Table, wanted: set[str]) -> bool:
    for part in pool.parts(["image_id", "colour"]):
        coloured = part.filter(pc.field("colour"))["image_id"].to_pylist()
        if any(image_id in wanted for image_id in coloured):
            return True
    return False
