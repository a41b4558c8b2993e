"""Training images as one memory-mapped array: decoded once, read in any order without parsing.

The array is square (the whole image, as evaluation sees it) and a little larger than the model's
input, so that crops keep their sharpness. It is a cache: named by what it holds, made again when
missing. An image that cannot be decoded is left out: the stage that scores it names it.
"""

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from echostill.platform.errors import EchostillError
from echostill.platform.imaging.images import DecodeError, decode_staged, to_square
from echostill.platform.tables.atomic import atomic_write, atomic_write_bytes
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.table import Table

MARGIN = 8 / 7  # 256 pixels for a model of 224
STAGING = threading.Lock()  # runs trained side by side want the same images: one stages them


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
    """Folder for staged arrays: in a local store, else on this node's own disk."""
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
    array_path, words_path = folder / f"{key}.npy", folder / f"{key}.words.json"
    with STAGING:
        if not (array_path.exists() and words_path.exists()):
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(array_path) as temporary:
                words = _write(pool, wanted, side, temporary)
            atomic_write_bytes(words_path, json.dumps(words).encode())
    words = json.loads(words_path.read_text())
    pixels = np.load(array_path, mmap_mode="r")
    return StagedImages(
        pixels[: len(words["ids"])], words["ids"], words["organs"], words["devices"]
    )


def _ids(pool: Table) -> list[str]:
    return list(pool.read(["image_id"])["image_id"].to_pylist())


def _write(pool: Table, wanted: list[str], side: int, target: Path) -> dict[str, list[str]]:
    """Write the array; return ids, organs and devices of its first rows, which hold the images."""
    position = {image_id: row for row, image_id in enumerate(wanted)}
    channels = 3 if _any_colour(pool, position) else 1
    array = np.lib.format.open_memmap(
        target, mode="w+", dtype=np.uint8, shape=(len(wanted), channels, side, side)
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


def _any_colour(pool: Table, position: dict[str, int]) -> bool:
    for part in pool.parts(["image_id", "colour"]):
        coloured = part.filter(pc.field("colour"))["image_id"].to_pylist()
        if any(image_id in position for image_id in coloured):
            return True
    return False
