"""Names of what a store holds: coresets, runs, evaluations, caches, sweeps. Never paths.

A name is a folder's name on every file system and object store, and part of a URL; so it has no
separators, no control characters, and does not begin with what a shell or a file system reads as
something else.
"""

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator

from echostill.platform.errors import UsageError

LONGEST = 100  # characters; four bytes each at most, far below a path's limits
_ALLOWED = re.compile(r"[^\W_][\w .+@=-]*|_[\w .+@=-]*")
# Windows keeps these for devices, with or without a suffix.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
RULE = (
    "a name has letters, digits, spaces and _ - . + @ =, begins with a letter, a digit or _, does "
    f"not end with a space or a dot, and has at most {LONGEST} characters; it is no path"
)


def check_name(name: str) -> str:
    """Return a name in its composed Unicode form.

    Raises:
        UsageError: It cannot be the name of a folder; says the rule.
    """
    composed = unicodedata.normalize("NFC", name)
    fits = _ALLOWED.fullmatch(composed) and not composed.endswith((" ", "."))
    if not fits or len(composed) > LONGEST or _DEVICES.fullmatch(composed):
        raise UsageError(f"'{name}' cannot be a name: {RULE}.")
    return composed


def is_name(name: str) -> bool:
    """Whether a folder has a name that :func:`check_name` gives."""
    try:
        return check_name(name) == name
    except UsageError:
        return False


def _validate(name: str) -> str:
    try:
        return check_name(name)
    except UsageError:
        raise ValueError(f"not a valid name: {RULE}") from None


Name = Annotated[str, AfterValidator(_validate)]
