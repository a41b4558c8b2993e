import os
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from echostill.platform.errors import EchostillError
from echostill.platform.imaging.images import encode_png, to_square
from echostill.platform.tables.schemas import POOL_SCHEMA
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import write_table
from echostill.platform.training import staging
from echostill.platform.training.staging import UNUSED_DAYS, WORDS, stage_images, staged_side


@pytest.mark.parametrize("colour", [False, True])
def test_every_image_lies_at_its_id_with_its_words(tmp_path, colour):
    store = Store(str(tmp_path))
    random = np.random.default_rng(0)
    shape = (20, 24, 3) if colour else (20, 24)
    drawn = [random.integers(0, 255, shape, dtype=np.uint8) for _ in range(9)]
    rows = [
        {
            "image_id": f"{(7 * n) % 9:032x}",
            "organ": f"organ {n % 2}",
            "device": None if n == 3 else f"device {n % 3}",
            "image": encode_png(pixels),
            "colour": colour and n == 4,
        }
        for n, pixels in enumerate(drawn)
    ]
    pool = pa.Table.from_pylist(rows, schema=POOL_SCHEMA)
    write_table(store.pool(), pool, stage="ingest", fingerprint={}, rows_per_part=4)
    wanted = [rows[n]["image_id"] for n in (8, 3, 4, 0)]
    staged = stage_images(store.open_pool(), store.root, 14, wanted)
    assert staged.image_ids == sorted(wanted)
    assert staged.pixels.shape == (4, 3 if colour else 1, staged_side(14), staged_side(14))
    for place, image_id in enumerate(staged.image_ids):
        n = next(n for n, row in enumerate(rows) if row["image_id"] == image_id)
        square = to_square(drawn[n], staged_side(14))[: staged.pixels.shape[1]]
        np.testing.assert_array_equal(staged.pixels[place], square)
        assert staged.organs[place] == rows[n]["organ"]
        assert staged.devices[place] == (rows[n]["device"] or "")
    again = stage_images(store.open_pool(), store.root, 14, wanted[::-1])
    assert again.pixels.filename == staged.pixels.filename  # staged once
    with pytest.raises(EchostillError, match="1 of 2 images are not in the pool"):
        stage_images(store.open_pool(), store.root, 14, [wanted[0], "absent"])
    assert not list(tmp_path.rglob("*.tmp"))


def small_pool(store, count=4):
    rows = [
        {"image_id": f"{n:032x}", "image": encode_png(np.full((8, 8), n, dtype=np.uint8))}
        for n in range(count)
    ]
    table = pa.Table.from_pylist(
        [{"organ": "", "device": "", "colour": False, **row} for row in rows], schema=POOL_SCHEMA
    )
    write_table(store.pool(), table, stage="ingest", fingerprint={}, rows_per_part=4)
    return [row["image_id"] for row in rows]


WORKER = """
import pathlib, sys, time
from echostill.platform.tables.store import Store
from echostill.platform.training import staging
store, folder = Store(sys.argv[1]), pathlib.Path(sys.argv[1])
write = staging._write
def slow(*arguments):
    with (folder / "writers").open("a") as file:
        file.write("one\\n")
    deadline = time.monotonic() + 60
    while not (folder / "other-waits").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    return write(*arguments)
staging._write = slow
print("ready", flush=True)
sys.stdin.readline()
staged = staging.stage_images(store.open_pool(), store.root, 14)
print(staged.pixels.filename, int(staged.pixels.sum()), len(staged), flush=True)
"""


@pytest.mark.slow  # two interpreters
def test_of_two_processes_one_stages_and_both_map_the_same_file(tmp_path):
    store = Store(str(tmp_path))
    small_pool(store)
    command = [sys.executable, "-c", WORKER.replace("\\\\", "\\"), str(tmp_path)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    while not (tmp_path / "writers").exists():  # one writes; the other comes to the lock meanwhile
        time.sleep(0.05)
    (tmp_path / "other-waits").touch()
    said = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert said[0] == said[1]
    assert said[0].split()[1:] == [str(6 * staged_side(14) ** 2), "4"]
    assert (tmp_path / "writers").read_text() == "one\n"


def test_a_named_disk_is_cleared_of_what_nobody_uses(tmp_path, monkeypatch):
    store, disk = Store(str(tmp_path / "store")), tmp_path / "disk"
    ids = small_pool(store)
    monkeypatch.setenv("ECHOSTILL_CACHE", str(disk))

    def arrays():
        return {path.name for path in disk.glob("*.npy")}

    first = stage_images(store.open_pool(), store.root, 14, ids[:2])
    (old,) = disk.glob(f"*{WORDS}")
    long_ago = time.time() - (UNUSED_DAYS + 1) * 86_400
    os.utime(old, (long_ago, long_ago))
    stage_images(store.open_pool(), store.root, 14, ids[:2])  # used: it is not old any more
    stage_images(store.open_pool(), store.root, 14, ids[:3])
    assert len(arrays()) == 2
    os.utime(old, (long_ago, long_ago))
    (disk / f"{old.name.removesuffix(WORDS)}.npy.0123abcd.tmp").touch()  # of one that was killed
    stage_images(store.open_pool(), store.root, 14, ids)
    assert len(arrays()) == 2
    assert not old.exists()
    assert int(first.pixels.sum()) == staged_side(14) ** 2  # who mapped it still sees it
    stage_images(store.open_pool(), store.root, 14, ids[:2])
    assert len(arrays()) == 3
    assert not list(disk.glob("*.tmp"))


def test_a_full_disk_loses_what_was_used_least_recently_and_is_named(tmp_path, monkeypatch):
    store, disk = Store(str(tmp_path / "store")), tmp_path / "disk"
    ids = small_pool(store)
    monkeypatch.setenv("ECHOSTILL_CACHE", str(disk))
    for number, some in enumerate((ids[:1], ids[:2])):
        stage_images(store.open_pool(), store.root, 14, some)
        for words in disk.glob(f"*{WORDS}"):
            if str(ids[1]) in words.read_text() or number == 0:
                os.utime(words, (1e9 + number, time.time() - 100 + number))

    class Usage:
        def __init__(self, folder):
            self.free = 4096 if len(list(folder.glob("*.npy"))) < 2 else 0

    monkeypatch.setattr(staging.shutil, "disk_usage", Usage)
    stage_images(store.open_pool(), store.root, 14, ids[:3])
    left = [words.read_text() for words in disk.glob(f"*{WORDS}")]
    assert len(left) == 2
    assert all(ids[1] in words for words in left)  # the first array went
    with pytest.raises(EchostillError, match="ECHOSTILL_CACHE") as caught:
        stage_images(store.open_pool(), store.root, 100, ids)
    assert f"the disk of '{disk}' has 4.1 kB left" in str(caught.value)
