"""Errors of others as one line with an exit code, each raised by whom it belongs to."""

import errno
import os
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from echostill.jobs.cli.foreign import TRACEBACK, in_words
from echostill.jobs.cli.main import app, main
from echostill.platform.errors import EchostillError, UsageError

LONG = "n" * 300


def disk_full():
    with open("/dev/full", "w") as file:
        file.write("x")


def arrow_long():
    pafs.LocalFileSystem().get_file_info(f"/tmp/{LONG}")


def arrow_full():
    with pafs.LocalFileSystem().open_output_stream("/dev/full") as stream:
        stream.write(b"x")


def read_only():
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/store/events/ingest.jsonl")


def forbidden():
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/store/pool")


def too_many():
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def mlflow():
    from mlflow.exceptions import MlflowException

    raise MlflowException("the run is\n deleted")


def on_the_gpu():
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")


def of_ray():
    from ray.exceptions import WorkerCrashedError

    raise WorkerCrashedError


KINDS = {
    disk_full: (1, ["no space is left", "same command continues"]),
    arrow_full: (1, ["no space is left"]),
    arrow_long: (2, ["too long", "255 bytes", "'/tmp/nnn"]),
    read_only: (2, ["'/store/events/ingest.jsonl' is on a read-only file system"]),
    forbidden: (2, ["permission denied: '/store/pool'"]),
    too_many: (1, ["too many files are open", "ulimit -n"]),
    (lambda: Path(f"/tmp/{LONG}").read_bytes()): (2, ["too long", "255 bytes"]),
    (lambda: Path("/no/such/file").read_bytes()): (2, ["'/no/such/file': No such file"]),
    (lambda: os.listdir("/etc/passwd")): (2, ["'/etc/passwd': Not a directory"]),
    (lambda: b"\xff".decode()): (2, ["not UTF-8", "Save the file as UTF-8"]),
    (lambda: "\u0644".encode("ascii")): (2, ["'\\u0644' cannot be written as ascii"]),
    (lambda: bytearray(2**62)): (1, ["out of memory"]),
    (lambda: {}["key"]): (1, ["KeyError: 'key'.", f"{TRACEBACK}=1"]),
    (lambda: int("x\ny")): (1, ["ValueError: invalid literal"]),
    mlflow: (1, ["MLflow: the run is deleted."]),
    on_the_gpu: (1, ["the GPU is out of memory", "smaller batch"]),
    of_ray: (1, ["WorkerCrashedError", "lack of memory", "fewer workers"]),
}


@pytest.mark.parametrize("fail", KINDS, ids=lambda fail: fail.__name__)
def test_an_error_of_others_is_one_line(fail):
    with pytest.raises(Exception) as info:
        fail()
    found = in_words(info.value)
    code, words = KINDS[fail]
    assert found.exit_code == code
    text = str(found)
    assert len(text.splitlines()) == 1
    assert len(text) < 900
    assert text.endswith((".", ")"))
    for word in words:
        assert word in text


def test_our_own_errors_stay_as_they_are():
    for error in (UsageError("a"), EchostillError("b")):
        assert in_words(error) is error


def test_the_command_line_shows_where_only_if_asked(capsys, monkeypatch):
    monkeypatch.setattr(app, "registered_commands", [])

    @app.command("fails")
    @app.command("other")  # with one command alone, Typer takes no name
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device", "/store/pool/part.tmp")

    for shown in (False, True):
        if shown:
            monkeypatch.setenv(TRACEBACK, "1")
        with pytest.raises(SystemExit) as ended:
            main(["fails"])
        assert ended.value.code == 1
        error = capsys.readouterr().err
        assert ("Traceback" in error) is shown
        assert error.splitlines()[-1].startswith("error: no space is left to write '/store/pool/")


def test_a_name_that_is_not_text(capsys):
    """Python passes on the bytes of the operating system as lone surrogates."""
    with pytest.raises(SystemExit) as ended:
        main(["select", "store=" + os.fsdecode(b"/tmp/\xff")])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: b'\\xff' in a configuration is not UTF-8 text")
    assert len(error.splitlines()) == 1
