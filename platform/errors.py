"""Errors that a person can act on: they name the thing, what was expected and what to do."""

import difflib
from collections.abc import Iterable


class EchostillError(Exception):
    """The work failed; what was finished is kept. The command line exits with 1."""

    exit_code = 1


class UsageError(EchostillError):
    """The request itself is wrong (a key, a path, a value). The command line exits with 2."""

    exit_code = 2


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest valid name, or an empty string."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""
