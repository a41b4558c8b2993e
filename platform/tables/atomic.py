"""Files and folders that appear whole or not at all, and a lock between processes.

What is written gets a temporary name beside its own and is renamed when it is on the disk, so that
no reader ever meets half of it and whoever is killed leaves the earlier file as it was. What a
killed writer leaves behind ends in ``.tmp``.
"""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".tmp"  # how names end while what they stand for is being written


@contextmanager
def atomic_write(target: str | Path) -> Iterator[Path]:
    """Give a temporary name for a file or a folder that becomes ``target`` when it is whole.

    The block writes under the name it is given, which nothing has yet. When it ends, what is there
    is brought to the disk and renamed; when it raises, what is there is deleted. Threads and
    processes that write the same target at once do not disturb each other: the last one stays.

    Args:
        target: The name to write; its folder must exist. A file replaces an earlier file; a folder
            must not be there yet.

    Yields:
        The temporary name, in the same folder.

    Raises:
        OSError: The folder is missing or cannot be written, or the disk is full.
    """
    target = Path(target)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}")
    try:
        yield temporary
        files = temporary.rglob("*") if temporary.is_dir() else (temporary,)
        for path in files:
            if path.is_file():
                _sync(path)
        os.replace(temporary, target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def atomic_write_bytes(target: str | Path, data: bytes) -> None:
    """Write a file whole; see :func:`atomic_write`."""
    with atomic_write(target) as temporary:
        temporary.write_bytes(data)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold a lock that one thread of one process has at a time; others wait.

    The file stays empty and is never deleted: deleting it would let two holders in. The lock ends
    with its holder, however that ends.

    Args:
        path: The lock file; its folder must exist and lie on a disk of this machine, or on a shared
            one that knows ``flock``.
    """
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
