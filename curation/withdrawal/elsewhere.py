"""Files on this machine, outside of the store, that hold withdrawn images.

The service derives files in the user's cache, data sets for torch keep copies of pictures there,
and arrays are staged on the node's own disk where the store is a bucket.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from echostill.curation.withdrawal.files import WORDS, outdated_arrays
from echostill.curation.withdrawal.request import WithdrawnImages
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.store import Store
from echostill.platform.tables.user_cache import user_cache
from echostill.platform.training.staging import cache_folder
from echostill.platform.withdrawal.traces import Traces

DERIVED, DATASETS = "derived", "datasets"  # as the service and CoresetDataset name them


def find_derived(images: WithdrawnImages) -> list[Path]:
    """Return what this user's cache holds of withdrawn images; the next question makes it again."""
    ids = pa.array(sorted(images.traces.ids), pa.string())
    found = []
    for folder in sorted(user_cache(DERIVED).iterdir()):
        catalogues = sorted(folder.glob("catalogue-*.arrow")) if folder.is_dir() else []
        if any(_names(str(path), ids) for path in catalogues):
            found.append(folder)
    staged = set(images.staged)
    found += [path for path in sorted(user_cache(DATASETS).glob("*.arrow")) if _shows(path, staged)]
    return found


def _names(path: str, ids: pa.Array) -> bool:
    """Whether a catalogue has a withdrawn image, or cannot be read and is of no use."""
    try:
        with pa.memory_map(path) as source:
            known = pa.ipc.open_file(source).read_all()["image_id"]
            return bool(pc.any(pc.is_in(known, value_set=ids.cast(known.type))).as_py())
    except (pa.ArrowException, OSError, KeyError):
        return True


def _shows(path: Path, staged: set[str]) -> bool:
    with pa.memory_map(str(path)) as source:
        images = pa.ipc.open_file(source).read_all()["image"]
        return any(sha256(data.as_py()) in staged for data in images)


def staged_elsewhere(store: Store, traces: Traces) -> list[Path]:
    """Return files of staged arrays outside of the store, on this machine."""
    folder = cache_folder(store.root)
    inside = store.storage.is_local and folder == Path(store.storage.local_path("cache"))
    if inside or not folder.is_dir():
        return []
    storage = Storage(str(folder))
    known = storage.list()
    words = [name for name in known if name.endswith(WORDS)]
    arrays = [name for name in known if f"{name.removesuffix('.npy')}{WORDS}" in words]
    return [folder / name for name in sorted(outdated_arrays(storage, [*words, *arrays], traces))]


def count_elsewhere(found: Sequence[Path]) -> list[dict[str, Any]]:
    """Count them by folder, for the receipt."""
    counted = Counter(str(path.parent) for path in found)
    return [
        {"place": place, "what": "what can be made again", "files": files, "how": "deleted"}
        for place, files in sorted(counted.items())
    ]


def remove_elsewhere(found: Sequence[Path]) -> None:
    """Delete them."""
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
