"""Columns of text for millions of rows: values that repeat, each kept once, and those that do not.

A Python string for each cell is what fills the memory, and work on each value of a column that has
few is what takes the time.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, overload

import numpy as np
import pyarrow as pa

BATCH = 256  # rows that are Python objects at a time: they fit the caches of a core
_JOINED = 256  # batches in a chunk of a column

T = TypeVar("T", bound=Hashable)
U = TypeVar("U", bound=Hashable)


class Numbering(dict[T, int], Generic[T]):
    """Numbers for values, in the order in which they are met."""

    def __missing__(self, value: T) -> int:
        """Return the number of a new value."""
        number = self[value] = len(self)
        return number

    def of(self, values: Iterable[T]) -> np.ndarray:
        """Return the numbers of values, (N,) int32."""
        return np.fromiter(map(self.__getitem__, values), np.int32)


@dataclass(frozen=True, eq=False)
class Words(Sequence[T]):
    """A column of values that repeat: each one once, and its number in each row.

    Attributes:
        numbers: (N,) int32.
        distinct: The value of each number; some may be equal, and some in no row.
    """

    numbers: np.ndarray
    distinct: Sequence[T]

    @classmethod
    def of(cls, values: Iterable[T]) -> "Words[T]":
        """Make a column of its values."""
        numbering = Numbering[T]()
        numbers = numbering.of(values)
        return cls(numbers, list(numbering))

    @classmethod
    def same(cls, value: T, rows: int) -> "Words[T]":
        """Make a column of one value, which takes no memory by row."""
        return cls(np.broadcast_to(np.int32(0), rows), [value])

    @classmethod
    def joined(cls, columns: Iterable["Words[T]"]) -> "Words[T]":
        """Put columns below each other."""
        given = list(columns)
        if len(given) == 1:
            return given[0]
        numbering = Numbering[T]()
        numbers = [numbering.of(one.distinct)[one.numbers] for one in given]
        return cls(np.concatenate([*numbers, np.empty(0, np.int32)]), list(numbering))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.numbers)

    @overload
    def __getitem__(self, row: int) -> T: ...
    @overload
    def __getitem__(self, row: slice | np.ndarray) -> "Words[T]": ...

    def __getitem__(self, row: int | slice | np.ndarray) -> "T | Words[T]":
        """Return the value of a row, or the column of some rows."""
        if isinstance(row, slice | np.ndarray):
            return Words(self.numbers[row], self.distinct)
        value: T = self.distinct[self.numbers[row]]
        return value

    def __iter__(self) -> Iterator[T]:
        """Yield the values row by row."""
        return map(self.distinct.__getitem__, self.numbers.tolist())

    def map(self, function: Callable[[T], U]) -> "Words[U]":
        """Apply a function to each distinct value, once."""
        return Words(self.numbers, [function(value) for value in self.distinct])

    def where(self, function: Callable[[T], object]) -> np.ndarray:
        """Return in which rows a function of the value is true, (N,) bool."""
        found = np.array([bool(function(value)) for value in self.distinct], bool)
        return np.take(found, self.numbers)

    def or_else(self, other: "Words[T]") -> "Words[T]":
        """Return this column with the other's values where its own are empty."""
        numbers = np.where(self.where(bool), self.numbers, other.numbers + len(self.distinct))
        return Words(numbers.astype(np.int32), [*self.distinct, *other.distinct])

    def met(self) -> "Words[T]":
        """Return this column with only the values that rows have, in the order of the rows."""
        first = np.full(len(self.distinct), len(self), np.int64)
        first[self.numbers[::-1]] = np.arange(len(self))[::-1]  # the last one written stays
        order = np.argsort(first, kind="stable")[: np.count_nonzero(first < len(self))]
        new = np.zeros(len(self.distinct), np.int32)
        new[order] = np.arange(len(order))
        return Words(new[self.numbers], [self.distinct[number] for number in order])

    def replaced(self, rows: np.ndarray, value: T) -> "Words[T]":
        """Return this column with one value in some rows, (N,) bool."""
        numbers = np.where(rows, np.int32(len(self.distinct)), self.numbers)
        return Words(numbers, [*self.distinct, value])

    def changed(self, values: dict[int, T]) -> "Words[T]":
        """Return this column with other values in some rows."""
        if not values:
            return self
        numbers = self.numbers.copy()
        numbers[list(values)] = np.arange(len(values)) + len(self.distinct)
        return Words(numbers, [*self.distinct, *values.values()])


def texts(values: Iterable[str | None]) -> pa.Array:
    """Make a column of text that does not repeat, as bytes: names of files may be no Unicode."""
    encoded = [None if one is None else one.encode(errors="surrogatepass") for one in values]
    return pa.array(encoded, pa.binary())


def joined_texts(batches: Sequence[pa.Array]) -> pa.ChunkedArray:
    """Put columns of text below each other, in few chunks."""
    starts = range(0, len(batches), _JOINED)
    chunks = [pa.concat_arrays(batches[start : start + _JOINED]) for start in starts]
    return pa.chunked_array(chunks, pa.binary())


def read_texts(column: pa.Array | pa.ChunkedArray) -> list[str]:
    """Return the values of a column of :func:`texts` without gaps."""
    return [value.decode(errors="surrogatepass") for value in column.to_pylist()]
