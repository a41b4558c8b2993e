"""Paths as manifests list them: made absolute, kept inside their root, and turned into names."""

import itertools
import os
import posixpath
import unicodedata
from collections.abc import Iterable


def absolute_path(file: str, root: str) -> str:
    """Return a listed file's absolute path or URI."""
    if "://" in file:
        return file
    if "://" in root:
        scheme, _, rest = root.partition("://")
        bucket, _, folder = rest.partition("/")
        return f"{scheme}://{bucket}" + posixpath.normpath(posixpath.join("/", folder, file))
    if file[:1] in ("/", "~", ""):
        return os.path.normpath(os.path.join(root, os.path.expanduser(file)))
    return os.path.normpath(f"{root.rstrip('/')}/{file}")


def leads_out(file: str, root: str) -> bool:
    """Return whether a listed relative path leaves its root.

    An absolute path may point anywhere, but a bucket has no absolute paths.
    """
    if "://" in file or is_inside(absolute_path(file, root), root):
        return False
    return "://" in root or not os.path.isabs(os.path.expanduser(file))


def is_inside(file: str, root: str) -> bool:
    """Return whether a path is in a folder, at any depth."""
    return file.startswith(root.rstrip("/") + "/")


def common_folder(files: Iterable[str]) -> str:
    """Return the deepest folder that contains all files, ``""`` if they share none."""
    folders = sorted(folder.split("/") for folder in {posixpath.dirname(file) for file in files})
    if not folders:
        return ""
    # In sorted order, the prefix shared by the first and the last is shared by all.
    pairs = zip(folders[0], folders[-1], strict=False)
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    return "".join(f"{part}/" for part, _ in shared)


def portable_name(name: str) -> str:
    """Return a name that is the same on every machine: composed Unicode, only text."""
    if name.isascii():
        return name
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return unicodedata.normalize("NFC", text)
