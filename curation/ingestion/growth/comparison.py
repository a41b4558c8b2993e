"""What is listed now against the files of the pool: known, new, changed, or no longer there.

A file is known by its name and its bytes, wherever it lies. Its bytes are read only where its
place, its size or its time of writing are not those that were kept.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from echostill.curation.deidentification.pseudonyms import Pseudonymiser
from echostill.curation.ingestion.growth.changes import content_mark
from echostill.curation.ingestion.growth.known import UNKNOWN, KnownFile, KnownFiles
from echostill.curation.ingestion.manifests.files import Sources
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.images import DecodeError
from echostill.platform.withdrawal.tombstones import WITHDRAWN_FILE

NAMED = 3  # files that a message names


@dataclass(frozen=True)
class Comparison:
    """How a listing differs from the files of a pool.

    Attributes:
        found: Row of the listing for each of the pool's, by its number; others are not listed.
        new: Rows of the files that are not in the pool.
        names_of_new: Their names as the pool would have them.
        changed: Files of the pool with other bytes now, by number.
        described: Files of which something else is said now (a group, a label), by number.
        mended: Changed files that lie in quarantine, by number: a retry reads them.
        vanished: Files that are gone from sources that are listed now.
        elsewhere: Files of sources that are not listed now.
    """

    known: KnownFiles
    found: dict[int, int] = field(default_factory=dict)
    new: list[int] = field(default_factory=list)
    names_of_new: list[str] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    described: list[int] = field(default_factory=list)
    mended: list[int] = field(default_factory=list)
    vanished: list[int] = field(default_factory=list)
    elsewhere: list[int] = field(default_factory=list)

    def describe(self) -> str:
        """Count what is new, gone and described otherwise, and name a few of the new files."""
        files = "file" if len(self.new) == 1 else "files"
        named = ", ".join(self.names_of_new[:NAMED]) + (", ..." if len(self.new) > NAMED else "")
        return (
            f"{len(self.new)} {files} added, {len(self.vanished)} removed, {len(self.described)} "
            f"changed: {named}"
        )

    def complaint(self, keep_changed: bool, keep_vanished: bool) -> str:
        """Say which files need a decision that was not made; empty where none does."""
        said = []
        if not keep_changed and self.changed:
            said.append(f"{_count(self.changed)} with other content ({self._named(self.changed)})")
        if not keep_changed and self.described:
            named = self._named(self.described)
            said.append(f"{_count(self.described)} described otherwise ({named})")
        if not keep_vanished and self.vanished:
            said.append(f"{_count(self.vanished)} no longer there ({self._named(self.vanished)})")
        return "; ".join(said)

    def _named(self, numbers: Sequence[int]) -> str:
        names = [self.known.files[number].name for number in numbers[:NAMED]]
        return ", ".join(names) + (", ..." if len(numbers) > NAMED else "")


def _count(numbers: Sequence[int]) -> str:
    return f"{len(numbers)} {'file' if len(numbers) == 1 else 'files'}"


def compare(
    known: KnownFiles, listed: Sources, table: pa.Table, pseudonymiser: Pseudonymiser
) -> Comparison:
    """Compare a listing with the files of a pool.

    Args:
        known: Files of the pool.
        listed: What is listed now.
        table: Its :func:`~.changes.listing`, row by row.
        pseudonymiser: Hides names and places as in the pool.
    """
    matching = _Matching(known, listed, table, pseudonymiser.key)
    result = Comparison(known)
    for row in range(len(listed)):
        matching.place(row, result)
    asked = set(table["root"].to_pylist())
    for number, file in enumerate(known.files):
        if number in result.found or file.location in matching.locations:
            continue  # found, or its place is taken by other content that is in the pool too
        if file.name.startswith(WITHDRAWN_FILE):
            continue  # nothing of it is in the pool
        kind = result.vanished if file.root in asked else result.elsewhere
        kind.append(number)
    return result


class _Matching:
    def __init__(self, known: KnownFiles, listed: Sources, table: pa.Table, key: bytes) -> None:
        self._known, self._listed, self._key = known, listed, key
        rows = table.to_pylist()
        self._now = [KnownFile(version=0, unit=unit, **row) for unit, row in enumerate(rows)]
        self.locations = {file.location for file in self._now if file.location}
        self._named: dict[str, list[int]] = defaultdict(list)
        for number, file in enumerate(known.files):
            self._named[file.name].append(number)

    def place(self, row: int, result: Comparison) -> None:
        """Say of one listed file whether it is in the pool."""
        now = self._now[row]
        free = [n for n in self._named[now.name] if n not in result.found]
        here = [n for n in free if self._is_here(n, now)]
        number = next((n for n in here if self._unchanged(n, now)), None)
        if number is None:
            content = self._content(row) if free else ""
            moved = [n for n in free if self._known.files[n].location not in self.locations]
            same = (n for n in [*here, *moved] if content == self._known.content(self._file(n)))
            number = next(same, None) if content else None
        if number is None and here:
            number = here[-1]
            kind = result.mended if self._known.gave_nothing(self._file(number)) else result.changed
            kind.append(number)
        elif number is None:
            result.new.append(row)
            result.names_of_new.append(now.name)
            return
        elif self._file(number).digest != now.digest:
            result.described.append(number)
        result.found[number] = row

    def _file(self, number: int) -> KnownFile:
        return self._known.files[number]

    def _is_here(self, number: int, now: KnownFile) -> bool:
        """Whether a file of the pool lay where this one lies, as far as that was kept."""
        file = self._file(number)
        return file.location == now.location or file.size == UNKNOWN

    def _unchanged(self, number: int, now: KnownFile) -> bool:
        file = self._file(number)
        return file.size == UNKNOWN or (file.size, file.modified) == (now.size, now.modified)

    def _content(self, row: int) -> str:
        """The mark of a listed file's bytes; "" where it cannot be read."""
        source = self._listed[row]
        if source.problem or not source.file:
            return ""
        try:
            return content_mark(self._key, SourceFile(source.name, source.file).sha256())
        except DecodeError:
            return ""
