"""Whether a local folder can be written, found out without writing."""

import os


def unwritable(path: str) -> str | None:
    """Say why nothing can be written into a folder, which need not exist yet.

    Returns:
        A sentence without its full stop that names the folder; None where it can be written.
    """
    folder = os.path.abspath(path)
    while not os.path.lexists(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        return f"'{folder}' is not a folder"
    if os.access(folder, os.W_OK | os.X_OK):
        return None
    if _mounted_read_only(folder):
        return f"'{folder}' is on a read-only file system"
    return f"'{folder}' cannot be written by this user"


def _mounted_read_only(folder: str) -> bool:
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False
