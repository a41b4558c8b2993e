"""The user's folder for what can be made again: readers of a store write there, never into it."""

import os
import tempfile
from pathlib import Path

from echostill.platform.errors import UsageError

OWNER_ONLY = 0o700  # what is derived from images is as confidential as they are


def user_cache(*names: str) -> Path:
    """Return a folder of the user's cache, making it.

    It is ``$XDG_CACHE_HOME/echostill`` or ``~/.cache/echostill``; where that cannot be written, as
    in many containers, it is a folder of the user's own among the temporary files.

    Args:
        names: Folders inside.

    Raises:
        UsageError: None of these can be written.
    """
    problem = ""
    for folder in (_wanted(), Path(tempfile.gettempdir()) / f"echostill-{os.getuid()}"):
        inside = folder.joinpath(*names)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY)
            # Anyone can make a folder among the temporary files, under a name that can be guessed.
            if folder.lstat().st_uid != os.getuid():
                problem = problem or f"'{folder}' belongs to another user"
                continue
            inside.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY)
        except OSError as error:
            problem = problem or f"cannot write '{inside}' ({error.strerror})"
            continue
        if os.access(inside, os.W_OK):
            return inside
        problem = problem or f"cannot write '{inside}'"
    raise UsageError(f"{problem}: set XDG_CACHE_HOME to a folder that can be written.")


def _wanted() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification ignores a relative path, which would mean another folder in every shell.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "echostill"
