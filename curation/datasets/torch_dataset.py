"""A coreset as a dataset for torch's DataLoader."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from torch.utils.data import Dataset

from echostill.curation.datasets.chosen import ChosenImages, open_chosen
from echostill.curation.datasets.splits import described
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import decode_staged
from echostill.platform.tables.atomic import atomic_write, locked
from echostill.platform.tables.storage import sha256
from echostill.platform.tables.user_cache import user_cache

_AT_ONCE = 256  # pictures of a record batch


class CoresetDataset(Dataset[dict[str, Any]]):
    """The chosen images of a coreset, by number, for any number of workers.

    At the first use the encoded images are copied from the pool's Parquet files to one file in
    the user's cache, which workers map into memory: any image is then read without its neighbours.

    An item is a dictionary: ``image``, and ``image_id``, ``group_id``, ``organ``, ``device``,
    ``label``, ``class``, ``split`` and so on, as texts and numbers. An image that cannot be
    decoded raises a DecodeError.

    Args:
        store: Folder or URI of the store.
        name: Name of the coreset.
        transform: Takes a PIL image (mode ``L`` or ``RGB``) and returns what ``image`` shall be;
            None gives the PIL image itself.
        split: Only the images of this split; None for all.
        shares: Share of the images by split, such as ``{"train": 0.8, "test": 0.2}``; splits never
            divide a group. Shares, classes and seed give the splits of ``export-coreset``.
        classes: Column that is the class: ``label``, ``organ``, ``device`` or ``modality``;
            default the label if any image has one, otherwise the organ.
        seed: Of the splits.

    Raises:
        UsageError: There is no such coreset or split.

    Example:
        >>> images = CoresetDataset("runs/quickstart", "default", transform=to_tensor)
        >>> loader = torch.utils.data.DataLoader(images, batch_size=64, num_workers=4)
    """

    def __init__(
        self,
        store: str,
        name: str = "default",
        transform: Callable[[Image.Image], Any] | None = None,
        *,
        split: str | None = None,
        shares: Mapping[str, float] | None = None,
        classes: str | None = None,
        seed: int = 0,
    ) -> None:
        chosen = open_chosen(store, name)
        self.transform = transform
        self._file = str(_copied(chosen))
        sides = dict(shares or {"train": 1.0})
        self._known = described(chosen, classes, sides, seed)
        self._rows = np.arange(len(chosen))
        if split is not None:
            if split not in sides:
                raise UsageError(f"there is no split '{split}': there are {', '.join(sides)}.")
            own = np.asarray(self._known["split"].to_pylist(), dtype=object) == split
            self._rows = np.flatnonzero(own)
        self._pictures: list[pa.Array] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one image and what is known of it."""
        row = int(self._rows[index])
        if self._pictures is None:
            table = pa.ipc.open_file(pa.memory_map(self._file)).read_all()
            self._pictures = table["image"].chunks
        batch, place = divmod(row, _AT_ONCE)
        image = Image.fromarray(decode_staged(self._pictures[batch][place].as_py()))
        known = self._known.slice(row, 1).to_pylist()[0]
        return {"image": self.transform(image) if self.transform else image, **known}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped file out: a worker maps it again."""
        return {**self.__dict__, "_pictures": None}

    def values(self, column: str) -> Sequence[Any]:
        """Return a column, such as ``label``, for all images in order."""
        found: list[Any] = self._known[column].take(pa.array(self._rows)).to_pylist()
        return found


def _copied(chosen: ChosenImages) -> Path:
    """Return the file with the encoded images, made once for a pool and a coreset."""
    key = sha256(f"{chosen.pool.digest} {chosen.coreset.digest}".encode())[:24]
    target = user_cache("datasets") / f"{key}.arrow"
    schema = pa.schema([("image", pa.large_binary())])
    with locked(target.with_suffix(".lock")):
        if target.exists():
            return target
        needed = _bytes_needed(chosen)
        free = shutil.disk_usage(target.parent).free
        if needed > free:
            raise UsageError(
                f"the images need {needed / 2**30:.1f} GiB in '{target.parent}', which has "
                f"{free / 2**30:.1f} GiB free: set XDG_CACHE_HOME to a larger disk."
            )
        with atomic_write(target) as path, pa.ipc.new_file(str(path), schema) as writer:
            for start in range(0, len(chosen), _AT_ONCE):
                rows = np.arange(start, min(start + _AT_ONCE, len(chosen)))
                data = [picture for _, picture in chosen.pictures(rows)]
                writer.write_batch(pa.record_batch([pa.array(data, pa.large_binary())], schema))
    return target


def _bytes_needed(chosen: ChosenImages) -> int:
    """Estimate the size of the images by their share of the pool's files."""
    size = sum(part["bytes"] for part in chosen.pool.manifest["parts"])
    return int(size * len(chosen) / max(chosen.pool.rows, 1))
