"""Errors of others, in a line: of the operating system, Ray, MLflow, models and files.

Whoever calls the command line gets no traceback, whatever went wrong; with ECHOSTILL_TRACEBACK=1
it comes before the line.
"""

import errno
import os
import re

from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.ray_errors import cause_of, sentence

TRACEBACK = "ECHOSTILL_TRACEBACK"  # set to anything: shows where an error was raised
KEPT = "What was finished is kept: the same command continues."
SHOWN = 80  # characters of a long name
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EINVAL)


def in_words(error: Exception) -> EchostillError:
    """Say any exception as one of ours.

    Returns:
        A :class:`UsageError` where a path, a permission or a text is at fault that was given, else
        an :class:`EchostillError`. Its text is one line.
    """
    if isinstance(error, EchostillError):
        return error
    home = type(error).__module__.split(".")[0]
    if home == "ray":
        return cause_of(error)
    if home == "torch" and type(error).__name__ == "OutOfMemoryError":
        return EchostillError(
            f"the GPU is out of memory: {sentence('', str(error))} Use a smaller batch. {KEPT}"
        )
    if home == "mlflow":
        return EchostillError(f"MLflow: {sentence('', str(error))} {KEPT}")
    if isinstance(error, UnicodeError):
        return _of_text(error)
    if isinstance(error, MemoryError):
        return EchostillError(
            f"this machine is out of memory: {sentence('', str(error) or 'no more could be had')} "
            f"Use fewer workers or smaller settings. {KEPT}"
        )
    if isinstance(error, OSError):
        return _of_system(error)
    return EchostillError(
        f"{sentence(type(error).__name__, str(error))} Set {TRACEBACK}=1 to see where."
    )


def _of_text(error: UnicodeError) -> UsageError:
    if isinstance(error, UnicodeEncodeError):
        return UsageError(
            f"{error.object[error.start : error.end]!a} cannot be written as {error.encoding}: "
            "expected UTF-8. Set LC_ALL=C.UTF-8 or PYTHONIOENCODING=utf-8, or rename the file."
        )
    return UsageError(
        f"a text is not UTF-8: {sentence('', str(error))} Save the file as UTF-8, or rename it. "
        f"{TRACEBACK}=1 shows where it was read."
    )


def _of_system(error: OSError) -> EchostillError:
    text = " ".join(str(error).split())
    number, name = error.errno, error.filename
    # Arrow writes both into its text alone.
    if number is None and (found := re.search(r"\berrno (\d+)", text, re.IGNORECASE)):
        number = int(found[1])
    if name is None and (found := re.search(r"(?:path|file) '([^']+)'", text)):
        name = found[1]
    if not isinstance(name, str):
        name = None if name is None else os.fsdecode(name) if isinstance(name, bytes) else str(name)
    where = f"'{name if len(name) <= SHOWN else name[:SHOWN] + '...'}'" if name else None
    if number in FULL:
        return EchostillError(
            f"no space is left to write {where or 'a file'} (disk full, or a quota): free some. "
            f"{KEPT}"
        )
    if number == errno.EROFS:
        return UsageError(
            f"{where or 'a folder'} is on a read-only file system: expected one that can be "
            "written. Give another store or folder."
        )
    if number in (errno.EACCES, errno.EPERM):
        return UsageError(
            f"permission denied: {where or text}. Expected a file or folder that this user may "
            "use: change its permissions, or give another one."
        )
    if number == errno.ENAMETOOLONG:
        return UsageError(
            f"a name is too long for this file system: {where or text}. Expected at most 255 "
            "bytes: give a shorter name."
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return EchostillError(
            f"too many files are open: raise the limit (`ulimit -n 65536`) and try again. {KEPT}"
        )
    said = os.strerror(number) if number else sentence(type(error).__name__, text).rstrip(".")
    if number in NOT_THERE and where:
        return UsageError(f"{where}: {said}. Correct the path.")
    return EchostillError(f"{where + ': ' if where else ''}{said}. {KEPT}")
