"""Manifests: lists of files as text, CSV, JSONL or Parquet, as programs write them."""

import csv
import io
import itertools
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from echostill.curation.ingestion.manifests.columns import (
    Columns,
    as_text,
    manifest_columns,
    match_columns,
)
from echostill.curation.ingestion.manifests.words import (
    BATCH,
    Numbering,
    Words,
    joined_texts,
    read_texts,
    texts,
)
from echostill.platform.errors import UsageError

MANIFEST_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods")
_SEPARATORS = (",", ";", "\t", "|")
_HEAD = 2**20  # bytes that the names of the columns are looked for in
_UNIQUE = ("file", "id")  # what no two rows share
_T = TypeVar("_T")
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True)
class Manifest:
    """A manifest as read: what its columns mean (None for a list of files alone), and their cells.

    Attributes:
        columns: The columns.
        unique: The column ``file``, and ``id`` where there is one, as :func:`~.words.texts`.
        words: The others by meaning; ``problem`` among them, where a row can have one. A JSONL line
            that is not an object has nothing else.
    """

    columns: Columns | None
    unique: Mapping[str, pa.ChunkedArray]
    words: Mapping[str, Words[str]]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.unique["file"])

    def rows(self) -> Iterator[dict[str, str]]:
        """Yield what each row says, by meaning."""
        columns = [read_texts(column) for column in self.unique.values()] + [*self.words.values()]
        for values in zip(*columns, strict=True):
            yield dict(zip((*self.unique, *self.words), values, strict=True))


_Cells = Mapping[str, Sequence[str]]  # some rows' values, by meaning


def _manifest(columns: Columns | None, batches: Iterable[_Cells]) -> Manifest:
    meanings = ["file"] if columns is None else [*columns.used.values()]
    found: dict[str, list[pa.Array]] = {one: [] for one in meanings if one in _UNIQUE}
    numbers: dict[str, list[np.ndarray]] = {}
    numberings: dict[str, Numbering[str]] = {}
    for cells in batches:
        for meaning, values in cells.items():
            if meaning in _UNIQUE:
                found[meaning].append(texts(values))
            else:
                numbering = numberings.setdefault(meaning, Numbering())
                numbers.setdefault(meaning, []).append(numbering.of(values))
    return Manifest(
        columns,
        {meaning: joined_texts(batches) for meaning, batches in found.items()},
        {one: Words(np.concatenate(each), list(numberings[one])) for one, each in numbers.items()},
    )


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
    text = _Text.of(location, data)
    if suffix == ".txt" and not _is_table(text.head):
        lines = (one.strip() for line in text.lines() for one in line.splitlines())
        files = (line for line in lines if line and line[0] != "#")
        return _manifest(None, ({"file": batch} for batch in _batched(files)))
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(location, text)
    return _separated(location, text)


def _parquet(location: str, data: bytes) -> Manifest:
    try:
        file = pq.ParquetFile(io.BytesIO(data))
    except (OSError, ValueError):
        raise UsageError(f"'{location}' is not a readable Parquet file.") from None
    columns = manifest_columns(location, file.schema_arrow.names)
    batches = file.iter_batches(columns=list(columns.used), batch_size=BATCH)
    return _manifest(
        columns,
        (
            {meaning: _as_texts(batch[name]) for name, meaning in columns.used.items()}
            for batch in batches
        ),
    )


def _as_texts(column: pa.Array) -> list[str]:
    if not pa.types.is_string(column.type):
        return [as_text(value) for value in column.to_pylist()]
    return [value.strip() if value else "" for value in column.to_pylist()]


@dataclass(frozen=True)
class _Text:
    """Text as it lies in a file, read line by line: as one string it takes its memory again."""

    data: bytes
    encoding: str

    @classmethod
    def of(cls, location: str, data: bytes) -> "_Text":
        """Find the encoding: UTF-8, or UTF-16 as spreadsheets save it, with a mark or with NULs.

        Raises:
            UsageError: It is neither.
        """
        encoding = _MARKS.get(data[:2], "utf-8-sig")
        if encoding == "utf-8-sig" and len(data) > 1 and 0 in data[:2]:
            encoding = "utf-16-le" if data[1] == 0 else "utf-16-be"
        try:
            data.decode(encoding)
        except UnicodeDecodeError:
            raise UsageError(
                f"'{location}' is not UTF-8 or UTF-16 text: save it as UTF-8 (in a spreadsheet "
                "'CSV UTF-8')."
            ) from None
        return cls(data, encoding)

    @property
    def head(self) -> str:
        """The beginning, with the names of the columns."""
        return self.data[:_HEAD].decode(self.encoding, "ignore")

    def lines(self, newline: str = "") -> Iterator[str]:
        """Yield the lines with their ends, by default any of the usual ones."""
        return io.TextIOWrapper(io.BytesIO(self.data), self.encoding, newline=newline)


def _separated(location: str, text: _Text) -> Manifest:
    stated, head = _stated_separator(text.head)
    first, lines = _first_line(head), text.lines()
    if stated:
        next((line for line in lines if line.endswith("\n")), "")  # the line that states it
    separators = (stated,) if stated else _SEPARATORS
    # What separates the columns is what finds one with files among their names.
    separator = max(separators, key=lambda one: _has_files(first, one))
    # Where the first row is no header, the separator is the one that is there.
    if not _has_files(first, separator):
        separator = max(separators, key=first.count)
    reader = csv.reader(lines, delimiter=separator)
    try:
        names = [name.strip() for name in next(reader, [])]
        columns = manifest_columns(location, names)
        return _manifest(columns, _cells(names, columns, reader))
    except csv.Error as error:
        raise UsageError(
            f"'{location}' is not a readable CSV file: {_CSV_ERRORS.get(str(error), 'damaged')}."
        ) from None


def _cells(names: list[str], columns: Columns, rows: Iterable[list[str]]) -> Iterator[_Cells]:
    """Yield the cells of a table with separators, whose rows may be too short or too long."""
    place = {name: number for number, name in enumerate(names)}  # of equal names the last counts
    for batch in _batched(cells for cells in rows if cells):
        whole = [
            cells
            if len(cells) == len(names)
            else [_row(names, cells).get(name, "") for name in names]
            for cells in batch
        ]
        cells = list(zip(*whole, strict=True))
        yield {
            meaning: [*map(str.strip, cells[place[name]])] for name, meaning in columns.used.items()
        }


_CSV_ERRORS = {
    "field larger than field limit (131072)": "a cell holds more than 131,072 characters, perhaps "
    "since a quotation mark is never closed",
    "line contains NUL": "it holds a NUL",
    "unexpected end of data": "a quotation mark is never closed",
}


def _is_table(text: str) -> bool:
    """Return whether a text file begins with the names of several columns, one with files."""
    stated, text = _stated_separator(text)
    first = _first_line(text)
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


def _first_line(text: str) -> str:
    return next(iter(text.partition("\n")[0].splitlines()), "")


def _batched(rows: Iterable[_T]) -> Iterator[list[_T]]:
    """Yield rows, some at a time."""
    rest = iter(rows)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch


def _has_files(line: str, separator: str) -> bool:
    return "file" in match_columns(_names(line, separator)).used.values()


def _names(line: str, separator: str) -> list[str]:
    return [name.strip() for name in next(iter(csv.reader([line], delimiter=separator)), [])]


def _row(names: list[str], cells: list[str]) -> dict[str, str]:
    return dict(zip(names, cells, strict=False))


def _json_lines(location: str, text: _Text) -> Manifest:
    found = [_json_object(line) for line in text.lines("\n") if line.strip()]
    # The columns are those of all rows together: a row may lack an id that others have.
    columns = manifest_columns(
        location, dict.fromkeys(name for row in found if row is not None for name in row)
    )
    batches = (
        {
            **{
                meaning: ["" if row is None else as_text(row.get(name)) for row in batch]
                for name, meaning in columns.used.items()
            },
            "problem": ["is no JSON object" if row is None else "" for row in batch],
        }
        for batch in _batched(found)
    )
    return _manifest(columns, batches)


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
