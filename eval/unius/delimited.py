"""Tables of text as people distribute them: odd separators, blanks at the ends, doubled columns."""

import csv
import io
import re
from collections import Counter

from echostill.platform.errors import UsageError

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t"}


def read_delimited(name: str, data: bytes, separator: str, header: str) -> list[dict[str, str]]:
    """Read a table; every value is text, without blanks at its ends.

    Args:
        name: What the file is called, for messages.
        data: Its bytes, as UTF-8 or, if they are not, as Windows-1252.
        separator: ``comma``, ``semicolon``, ``tab``, ``blanks``, or ``tell`` to find out.
        header: ``yes``, ``no`` or ``maybe``, as :class:`~echostill.eval.unius.layouts.SideTable`
            says.

    Returns:
        The rows by column. Missing values at the end of a line are empty; a column that is named
        like an earlier one gets ``.1``, ``.2``, ... at its end.

    Raises:
        UsageError: A row has more values than there are columns, or the file has no rows.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    lines = [line for line in _split(text, separator) if any(line)]
    if not lines:
        raise UsageError(f"'{name}' has no rows.")
    if header == "maybe" and not any(char.isdigit() for cell in lines[0] for char in cell):
        lines = lines[1:]
    named = header == "yes"
    width = max((len(line) for line in lines), default=0)
    columns = _distinct(lines[0]) if named else [f"column{i}" for i in range(1, width + 1)]
    rows = []
    for number, line in enumerate(lines[1:] if named else lines, start=2 if named else 1):
        if any(line[len(columns) :]):
            raise UsageError(
                f"'{name}' row {number} has {len(line)} values for {len(columns)} columns."
            )
        padded = [*line, *[""] * (len(columns) - len(line))]
        rows.append(dict(zip(columns, padded, strict=False)))
    return rows


def _split(text: str, separator: str) -> list[list[str]]:
    if separator == "blanks":
        return [re.split(r"\s+", line.strip()) for line in text.splitlines() if line.strip()]
    if separator == "tell":
        first = next((line for line in text.splitlines() if line.strip()), "")
        counts = {mark: first.count(mark) for mark in SEPARATORS.values()}
        mark = max(counts, key=lambda mark: counts[mark])
    else:
        mark = SEPARATORS[separator]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    return [[cell.strip() for cell in line] for line in reader]


def _distinct(names: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    columns = []
    for name in names:
        columns.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return columns
