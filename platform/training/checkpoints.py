"""Checkpoints of a training in this process: Ray Train's local mode keeps none of its own.

They lie where those of Ray's workers lie, under the same names, and either kind of run continues
from either: a training that was begun here may be continued by workers, and the other way round.
"""

import io
import json
from typing import Any

import torch

from echostill.platform.tables.storage import Storage

FOLDER = "train"  # of a run's folder; gone when the run is finished
STATE_FILE = "state.pt"


def run_name(digest: str) -> str:
    """Return the name under which Ray Train keeps a training; it continues what it finds there."""
    return f"run-{digest[:16]}"


def load_state(source: Any) -> dict[str, Any]:
    """Read a checkpoint from a path or an open file, onto the CPU."""
    saved: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True)
    saved["history"] = json.loads(saved["history"])
    return saved


def save_here(storage: Storage, digest: str, saved: dict[str, Any], keep: int) -> None:
    """Write a checkpoint, and delete all but the newest.

    Args:
        storage: Folder of the run.
        digest: Of what the training depends on.
        saved: What ``parallel.whole_state`` returned.
        keep: How many stay.
    """
    data = io.BytesIO()
    torch.save(saved, data)
    name = f"{FOLDER}/{run_name(digest)}/checkpoint_{saved['step']:09d}/{STATE_FILE}"
    storage.write(name, data.getvalue())  # appears when it is complete
    for old in _own(storage, digest)[:-keep]:
        storage.delete(old.rpartition("/")[0])


def newest(storage: Storage, digest: str) -> dict[str, Any] | None:
    """Return the checkpoint of the highest step that is whole, whoever wrote it."""
    best: dict[str, Any] | None = None
    for name in _all(storage, digest):
        try:
            saved = load_state(io.BytesIO(storage.read(name)))
        except (RuntimeError, EOFError, ValueError):  # cut off while Ray Train copied it
            continue
        if best is None or saved["step"] > best["step"]:
            best = saved
    return best


def _all(storage: Storage, digest: str) -> list[str]:
    folder = f"{FOLDER}/{run_name(digest)}"
    return sorted(
        name for name in storage.list(folder, recursive=True) if name.endswith(f"/{STATE_FILE}")
    )


def _own(storage: Storage, digest: str) -> list[str]:
    """Checkpoints that were written here, by step: Ray Train's names are times, with dashes."""
    folders = {
        name: name.split("/")[-2].removeprefix("checkpoint_") for name in _all(storage, digest)
    }
    return [name for name, step in folders.items() if step.isdigit()]
