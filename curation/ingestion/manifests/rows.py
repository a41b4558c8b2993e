"""Manifests: lists of files as text, CSV, JSONL or Parquet, as programs write them."""

import csv
import io
import json
import posixpath
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from echostill.curation.ingestion.manifests.columns import Columns, manifest_columns, match_columns
from echostill.platform.errors import UsageError

MANIFEST_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods")
_SEPARATORS = (",", ";", "\t", "|")
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True)
class Manifest:
    """A manifest as read: what its columns mean (None for a list of files alone) and its rows.

    A row has text by meaning, ``file`` among it. A JSONL line that is not an object gives a row
    with only its ``problem``.
    """

    columns: Columns | None
    rows: list[dict[str, str]]


def read_manifest(location: str, data: bytes) -> Manifest:
    """Read a manifest.

    Args:
        location: Path or URI of the manifest; its suffix determines the format.
        data: Bytes of the manifest.

    Raises:
        UsageError: The manifest is unreadable, has no file column, or has a misspelt one.
    """
    suffix = posixpath.splitext(location.lower())[1]
    if suffix == ".parquet":
        return _parquet(location, data)
    text = _text(location, data)
    if suffix == ".txt" and not _is_table(text):
        lines = (line.strip() for line in text.splitlines())
        return Manifest(None, [{"file": line} for line in lines if line and line[0] != "#"])
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(location, text)
    return _separated(location, text)


def _parquet(location: str, data: bytes) -> Manifest:
    try:
        file = pq.ParquetFile(io.BytesIO(data))
    except (OSError, ValueError):
        raise UsageError(f"'{location}' is not a readable Parquet file.") from None
    columns = manifest_columns(location, file.schema_arrow.names)
    table = file.read(columns=list(columns.used))
    return Manifest(columns, [columns.values(row) for row in table.to_pylist()])


def _text(location: str, data: bytes) -> str:
    """Decode text: UTF-8, or UTF-16 as spreadsheets save it, which begins with a mark or has NULs.

    Raises:
        UsageError: It is neither.
    """
    encoding = _MARKS.get(data[:2], "utf-8-sig")
    if encoding == "utf-8-sig" and len(data) > 1 and 0 in data[:2]:
        encoding = "utf-16-le" if data[1] == 0 else "utf-16-be"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise UsageError(
            f"'{location}' is not UTF-8 or UTF-16 text: save it as UTF-8 (in a spreadsheet 'CSV "
            "UTF-8')."
        ) from None


def _separated(location: str, text: str) -> Manifest:
    stated, text = _stated_separator(text)
    first = next(iter(text.splitlines()), "")
    separators = (stated,) if stated else _SEPARATORS
    # What separates the columns is what finds one with files among their names.
    separator = max(separators, key=lambda one: _has_files(first, one))
    # Where the first row is no header, the separator is the one that is there.
    if not _has_files(first, separator):
        separator = max(separators, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        names = [name.strip() for name in next(reader, [])]
        columns = manifest_columns(location, names)
        rows = [columns.values(_row(names, cells)) for cells in reader if cells]
    except csv.Error as error:
        raise UsageError(
            f"'{location}' is not a readable CSV file: {_CSV_ERRORS.get(str(error), 'damaged')}."
        ) from None
    return Manifest(columns, rows)


_CSV_ERRORS = {
    "field larger than field limit (131072)": "a cell holds more than 131,072 characters, perhaps "
    "since a quotation mark is never closed",
    "line contains NUL": "it holds a NUL",
    "unexpected end of data": "a quotation mark is never closed",
}


def _is_table(text: str) -> bool:
    """Return whether a text file begins with the names of several columns, one with files."""
    stated, text = _stated_separator(text)
    first = next(iter(text.splitlines()), "")
    return bool(stated) or any(
        len(_names(first, one)) > 1 and _has_files(first, one) for one in _SEPARATORS
    )


def _stated_separator(text: str) -> tuple[str, str]:
    """Return the separator of a first line such as ``sep=;``, and the text behind that line."""
    first, _, rest = text.partition("\n")
    stated = first.strip().strip('"')
    if stated.lower().startswith("sep=") and len(stated) == 5:
        return stated[4], rest
    return ("\t", rest) if stated.lower() == "sep=" else ("", text)


def _has_files(line: str, separator: str) -> bool:
    return "file" in match_columns(_names(line, separator)).used.values()


def _names(line: str, separator: str) -> list[str]:
    return [name.strip() for name in next(iter(csv.reader([line], delimiter=separator)), [])]


def _row(names: list[str], cells: list[str]) -> dict[str, str]:
    return dict(zip(names, cells, strict=False))


def _json_lines(location: str, text: str) -> Manifest:
    found = [_json_object(line) for line in text.split("\n") if line.strip()]
    # The columns are those of all rows together: a row may lack an id that others have.
    columns = manifest_columns(
        location, dict.fromkeys(name for row in found if row is not None for name in row)
    )
    problem = {"file": "", "problem": "is no JSON object"}
    return Manifest(columns, [problem if row is None else columns.values(row) for row in found])


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
