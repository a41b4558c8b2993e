"""Manifests: lists of files as text, CSV, JSONL or Parquet, and how their paths are resolved."""

import csv
import io
import itertools
import json
import os
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow.parquet as pq

from echostill.platform.errors import UsageError, nearest

MANIFEST_SUFFIXES = (".txt", ".csv", ".jsonl", ".ndjson", ".parquet")
FILE_COLUMNS = ("file", "path")
OPTIONAL_COLUMNS = ("id", "group", "patient", "organ", "device", "label")


def manifest_rows(location: str, data: bytes) -> Iterator[dict[str, str]]:
    """Read the rows of a manifest as text: ``file`` and the optional columns that it has.

    A JSONL line that is not an object gives a row with only its ``problem``.

    All values stay text, because the groups '012' and '12' are two patients.

    Args:
        location: Path or URI of the manifest; its suffix determines the format.
        data: Bytes of the manifest.

    Raises:
        UsageError: The manifest is unreadable or has no file column.
    """
    suffix = posixpath.splitext(location.lower())[1]
    if suffix == ".parquet":
        try:
            file = pq.ParquetFile(io.BytesIO(data))
        except (OSError, ValueError):
            raise UsageError(f"'{location}' is not a readable Parquet file.") from None
        columns = _columns(location, file.schema_arrow.names)
        table = file.read(columns=list(columns))
        for values in table.to_pylist():
            yield {meaning: _text(values[column]) for column, meaning in columns.items()}
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"'{location}' is not UTF-8 text: save it as UTF-8.") from None
    if suffix == ".txt":
        lines = (line.strip() for line in text.splitlines())
        yield from ({"file": line} for line in lines if line and not line.startswith("#"))
        return
    if suffix in (".jsonl", ".ndjson"):
        yield from _json_rows(location, text)
        return
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = _columns(location, reader.fieldnames or [])
        for row in reader:
            yield {meaning: _text(row[column]) for column, meaning in columns.items()}
    except csv.Error as error:
        raise UsageError(f"'{location}' is not a readable CSV file: {error}.") from None


def _json_rows(location: str, text: str) -> Iterator[dict[str, str]]:
    lines = [line for line in text.split("\n") if line.strip()]
    found = [_json_object(line) for line in lines]
    # The columns are those of all rows together: a row may lack an id that others have.
    names = dict.fromkeys(name for row in found if row is not None for name in row)
    columns = _columns(location, names)
    for row in found:
        if row is None:
            yield {"file": "", "problem": "is no JSON object"}
        else:
            yield {meaning: _text(row.get(column)) for column, meaning in columns.items()}


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _columns(location: str, names: Iterable[str]) -> dict[str, str]:
    """Return the columns to read and the meaning of each; other columns are ignored."""
    present = list(names)
    file_column = next((name for name in FILE_COLUMNS if name in present), None)
    if file_column is None:
        close = next((n for n in present if nearest(n.lower(), FILE_COLUMNS)), None)
        hint = f" Is it '{close}'? Then rename it." if close else ""
        raise UsageError(
            f"manifest '{location}' has no column 'file' (or 'path'); "
            f"it has: {', '.join(present) or 'none'}.{hint}"
        )
    return {file_column: "file", **{name: name for name in OPTIONAL_COLUMNS if name in present}}


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def absolute_path(file: str, root: str) -> str:
    """Return a listed file's absolute path or URI."""
    if "://" in file:
        return file
    if "://" in root:
        scheme, _, rest = root.partition("://")
        bucket, _, folder = rest.partition("/")
        return f"{scheme}://{bucket}" + posixpath.normpath(posixpath.join("/", folder, file))
    return os.path.normpath(os.path.join(root, os.path.expanduser(file)))


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


def common_folder(files: list[str]) -> str:
    """Return the deepest folder that contains all files, ``""`` if they share none."""
    folders = sorted({tuple(posixpath.dirname(file).split("/")) for file in files})
    if not folders:
        return ""
    # In sorted order, the prefix shared by the first and the last is shared by all.
    pairs = zip(folders[0], folders[-1], strict=False)
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    return "".join(f"{part}/" for part, _ in shared)


def portable_name(name: str) -> str:
    """Return a name that is the same on every machine: composed Unicode, only text."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return unicodedata.normalize("NFC", text)
