import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from echostill.platform.tables.atomic import UNFINISHED, atomic_write, atomic_write_bytes, locked


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_nothing_else_stays(tmp_path):
    target = tmp_path / "file"
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"half")
        assert not target.exists()
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(UNFINISHED)
        with temporary.open("ab") as file:
            file.write(b" and half")
    assert target.read_bytes() == b"half and half"
    atomic_write_bytes(str(target), b"")
    assert target.read_bytes() == b""
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_whole_and_nothing_else_stays(tmp_path):
    with atomic_write(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "one").write_text("1")
        (temporary / "two").write_text("2")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "inner" / "one").read_text() == "1"
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["inner", "two"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_the_earlier_file_and_no_other(tmp_path, error):
    (tmp_path / "file").write_text("before")

    def fail(temporary):
        if temporary.name.startswith("folder"):
            temporary.mkdir()
            temporary = temporary / "one"
        temporary.write_text("after")
        raise error

    for name in ("file", "folder"):
        with pytest.raises(error), atomic_write(tmp_path / name) as temporary:
            fail(temporary)
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_a_missing_folder_is_the_callers_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_write_bytes(tmp_path / "none" / "file", b"")
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "file"):
        pass  # nothing was written
    assert names(tmp_path) == []


def test_a_file_is_made_as_any_other(tmp_path):
    """Not for its owner alone, as files of `tempfile` are."""
    before = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    target = tmp_path / "file"
    texts = [bytes([65 + number]) * 100_000 for number in range(8)]
    seen = set()

    def look():
        while not done.is_set():
            if target.exists():
                seen.add(target.read_bytes())

    done = threading.Event()
    reader = threading.Thread(target=look)
    reader.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda text: atomic_write_bytes(target, text), texts * 5))
    done.set()
    reader.join()
    assert seen <= set(texts)
    assert target.read_bytes() in texts
    assert names(tmp_path) == ["file"]


def test_a_killed_writer_leaves_the_earlier_file(tmp_path):
    (tmp_path / "file").write_text("before")
    code = (
        "import sys, time; from echostill.platform.tables.atomic import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('after'); print('writing', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "file")], stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (tmp_path / "file").read_text() == "before"
    left = [name for name in names(tmp_path) if name != "file"]
    assert len(left) == 1
    assert left[0].endswith(UNFINISHED)


def test_one_thread_holds_a_lock_at_a_time(tmp_path):
    inside, most, order = 0, 0, []

    def work(number):
        nonlocal inside, most
        with locked(tmp_path / "lock"):
            inside += 1
            most = max(most, inside)
            order.append(number)
            time.sleep(0.001)
            inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(40)))
    assert most == 1
    assert sorted(order) == list(range(40))


def test_a_lock_is_held_between_processes_and_ends_with_its_holder(tmp_path):
    code = (
        "import sys, time; from echostill.platform.tables.atomic import locked\n"
        "with locked(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    entered = threading.Event()

    def enter():
        with locked(tmp_path / "lock"):
            entered.set()

    other = threading.Thread(target=enter, daemon=True)
    other.start()
    assert not entered.wait(0.2)
    holder.kill()
    holder.wait()
    assert entered.wait(30)
    other.join()
