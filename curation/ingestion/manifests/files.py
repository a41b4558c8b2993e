"""The files that an ingest reads, in columns; one of millions is an object when it is asked for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, overload

import numpy as np
import pyarrow as pa

from echostill.curation.ingestion.manifests.words import BATCH, Words, read_texts, texts
from echostill.curation.ingestion.settings import Source

_ATTRIBUTES = tuple(one.name for one in fields(Source))
_TEXTS = ("file", "name", "id")  # what no two files share
_WORDS = tuple(name for name in _ATTRIBUTES if name not in (*_TEXTS, "size"))
_PLAIN = Source("", "")


@dataclass(frozen=True, eq=False, repr=False)  # the user's own words do not belong into logs
class Sources(Sequence[Source]):
    """Files to read, as a sequence of :class:`~..settings.Source`.

    Attributes:
        name: As :func:`~.words.texts`, chunked.
        file: The same; null where it is the row's ``folder`` and its name.
        id: The same; "" where the user gave none, and None where there is none at all.
        size: (N,) int64.
        words: The other attributes, ``folder``, and ``root``: the source of the configuration that
            a file was found in.
    """

    name: pa.ChunkedArray
    file: pa.ChunkedArray
    id: pa.ChunkedArray | None
    size: np.ndarray
    words: Mapping[str, Words[Any]]

    @classmethod
    def of(cls, sources: Sequence[Source], root: str = "") -> "Sources":
        """Make columns of files that were found in one source of the configuration."""
        name, file, own = (
            pa.chunked_array([texts(getattr(one, text) for one in sources)])
            for text in ("name", "file", "id")
        )
        return cls.made(
            name,
            file,
            {each: Words.of(getattr(one, each) for one in sources) for each in _WORDS},
            id=own if any(one.id for one in sources) else None,
            size=np.array([one.size for one in sources], np.int64),
        ).found_in(root)

    @classmethod
    def made(
        cls,
        name: pa.ChunkedArray,
        file: pa.ChunkedArray,
        words: Mapping[str, Words[Any]],
        *,
        id: pa.ChunkedArray | None = None,
        size: np.ndarray | None = None,
    ) -> "Sources":
        """Make columns, of which those that are not given say nothing."""
        rows = len(name)
        empty = {each: Words.same(getattr(_PLAIN, each), rows) for each in _WORDS}
        empty |= {each: Words.same("", rows) for each in ("folder", "root")}
        return cls(
            name,
            file,
            id,
            np.broadcast_to(np.int64(0), rows) if size is None else size,
            {**empty, **words},
        )

    @classmethod
    def joined(cls, given: Sequence["Sources"]) -> "Sources":
        """Put files behind each other."""
        if len(given) == 1:
            return given[0]
        name = pa.chunked_array([each for one in given for each in one.name.chunks], pa.binary())
        file = pa.chunked_array([each for one in given for each in one.file.chunks], pa.binary())
        own = None
        if any(one.id is not None for one in given):
            ids = [pa.repeat(b"", len(one)) if one.id is None else one.id for one in given]
            own = pa.chunked_array([each for one in ids for each in getattr(one, "chunks", [one])])
        words = {
            each: Words.joined(one.words[each] for one in given)
            for each in (*_WORDS, "folder", "root")
        }
        sizes = [one.size for one in given]
        return cls(name, file, own, np.concatenate([*sizes, np.empty(0, np.int64)]), words)

    def found_in(self, root: str) -> "Sources":
        """Return these files, as found in one source of the configuration."""
        return self.with_words(root=Words.same(root, len(self)))

    def with_words(self, **words: Words[Any]) -> "Sources":
        """Return these files with other columns of words."""
        return replace(self, words={**self.words, **words})

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.name)

    @overload
    def __getitem__(self, row: int) -> Source: ...
    @overload
    def __getitem__(self, row: slice) -> "Sources": ...

    def __getitem__(self, row: int | slice) -> "Source | Sources":
        """Return a file, or columns of some files."""
        rows = range(len(self))[row]
        if isinstance(rows, int):
            (source,) = self._rows(rows, rows + 1)
            return source
        if rows.step != 1:
            return self.take(np.arange(rows.start, rows.stop, rows.step))
        return self._part(rows.start, rows.stop)

    def take(self, rows: np.ndarray) -> "Sources":
        """Return columns of the files with these numbers."""
        index = pa.array(rows, pa.int64())
        return Sources(
            self.name.take(index),
            self.file.take(index),
            None if self.id is None else self.id.take(index),
            self.size[rows],
            {each: words[rows] for each, words in self.words.items()},
        )

    def readable(self) -> "Sources":
        """Return the files without a problem."""
        return self.take(np.flatnonzero(~self.words["problem"].where(bool)))

    def __iter__(self) -> Iterator[Source]:
        """Yield the files one by one."""
        for start in range(0, len(self), BATCH):
            yield from self._rows(start, min(start + BATCH, len(self)))

    def batches(self, rows: int = BATCH) -> Iterator["Sources"]:
        """Yield columns of so many files at a time."""
        for start in range(0, len(self), rows):
            yield self._part(start, min(start + rows, len(self)))

    def values(self, attribute: str) -> list[Any]:
        """Return an attribute of each file."""
        if attribute == "size":
            return list(self.size.tolist())
        if attribute == "name":
            return read_texts(self.name)
        if attribute == "id":
            return [""] * len(self) if self.id is None else read_texts(self.id)
        if attribute != "file":
            return list(self.words[attribute])
        return [
            folder + name if file is None else file.decode(errors="surrogatepass")
            for folder, name, file in zip(
                self.words["folder"], read_texts(self.name), self.file.to_pylist(), strict=True
            )
        ]

    def _part(self, start: int, stop: int) -> "Sources":
        rows = max(stop - start, 0)
        return Sources(
            self.name.slice(start, rows),
            self.file.slice(start, rows),
            None if self.id is None else self.id.slice(start, rows),
            self.size[start:stop],
            {each: words[start:stop] for each, words in self.words.items()},
        )

    def _rows(self, start: int, stop: int) -> list[Source]:
        part = self._part(start, stop)
        columns = (part.values(attribute) for attribute in _ATTRIBUTES)
        return [Source(*values) for values in zip(*columns, strict=True)]
