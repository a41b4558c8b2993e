"""Checkpoints in a run's folder: which is the newest, whoever wrote it."""

import io

import torch

from echostill.platform.tables.storage import Storage
from echostill.platform.training.checkpoints import newest, run_name, save_here

DIGEST = "0123456789abcdef" * 4


def state(step):
    return {"step": step, "task": {"weight": torch.full((3,), float(step))}, "history": "[]"}


def test_the_highest_step_that_is_whole_is_the_newest(tmp_path):
    storage = Storage(str(tmp_path))
    assert newest(storage, DIGEST) is None
    for step in (2, 10, 9, 100):
        save_here(storage, DIGEST, state(step), keep=2)
    folder = f"train/{run_name(DIGEST)}"
    kept = [name.split("/")[2] for name in storage.list(folder, recursive=True)]
    assert kept == ["checkpoint_000000010", "checkpoint_000000100"]
    found = newest(storage, DIGEST)
    assert (found["step"], found["task"]["weight"].tolist()) == (100, [100.0] * 3)

    # Ray Train's names are times. Its copy of a newer one was cut off, and one is older.
    whole = io.BytesIO()
    torch.save(state(200), whole)
    for time, data in (("10", whole.getvalue()), ("11", whole.getvalue()[:-100])):
        storage.write(f"{folder}/checkpoint_2026-01-01_{time}-00-00.000000/state.pt", data)
    storage.write(f"{folder}/checkpoint_2026-01-01_12-00-00.000000/state.pt", b"")
    assert newest(storage, DIGEST)["step"] == 200
    save_here(storage, DIGEST, state(300), keep=1)
    assert newest(storage, DIGEST)["step"] == 300
    assert len(storage.list(folder, recursive=True)) == 4  # of the others none was deleted
    assert newest(storage, "f" * 64) is None
