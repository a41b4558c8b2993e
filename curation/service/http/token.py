"""The bearer token: made once, kept where only its owner can read it."""

import os
import secrets
import stat
from pathlib import Path

from echostill.platform.errors import UsageError
from echostill.platform.tables.store import Store

FEWEST = 16  # characters


def token_path(store: Store, given: str | None, folder: Path) -> Path:
    """Where the token lies: in the file given, beside a local store, else with derived files."""
    if given is not None:
        return Path(given).absolute()
    if store.storage.is_local:
        return Path(f"{store.root}.token")
    return folder / "token"


def find_token(path: Path) -> tuple[str, bool]:
    """Read the token, or make it.

    Returns:
        The token, and whether it was made now.

    Raises:
        UsageError: Others can read the file, or what it holds is no token.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_urlsafe(32)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path), False
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token, True


def _read(path: Path) -> str:
    mode = path.stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"others can read the token file '{path}': chmod 600 it.")
    token = path.read_text().strip()
    if len(token) < FEWEST or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"'{path}' holds no token: expected one line of at least {FEWEST} characters without "
            "blanks. Delete it and a new one is made."
        )
    return token
