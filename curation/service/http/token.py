"""The bearer token: created once, stored where only its owner can read it."""

import os
import secrets
import stat
from pathlib import Path

from echostill.curation.service.data.derived import store_key
from echostill.platform.errors import UsageError
from echostill.platform.tables.store import Store
from echostill.platform.tables.user_cache import user_cache

SHORTEST = 16  # characters


def token_path(store: Store, given: str | None) -> Path:
    """Return the token's file: the given one, or beside a local store, or in the user's cache.

    Raises:
        UsageError: It would be in the cache, and that cannot be written.
    """
    if given is not None:
        return Path(given).absolute()
    if store.storage.is_local:
        path = Path(f"{store.root}.token")
        if path.exists() or os.access(path.parent, os.W_OK):
            return path
    return user_cache("tokens") / store_key(store)


def find_token(path: Path) -> tuple[str, bool]:
    """Read the token, or create it.

    Returns:
        The token, and whether it was created now.

    Raises:
        UsageError: Others can read the file, or it does not contain a valid token.
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
        raise UsageError(f"other users can read the token file '{path}': run chmod 600 on it.")
    token = path.read_text().strip()
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"'{path}' does not contain a valid token: expected one line of at least {SHORTEST} "
            "characters without spaces. Delete the file, and a new token is created."
        )
    return token
