"""What became of a shard: its rows, its quarantined rows, and which unit of work gave which.

A unit is what can be tried again by itself: a file of ingest, a pool row of scoring. The rows of a
unit lie together, in the order of the units, in the table's part and in the quarantine's alike; so
units can be done again, and their rows exchanged, as if they had worked the first time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from echostill.platform.tables.schemas import QUARANTINE_SCHEMA

Runs = list[list[int]]


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: rows of the table and rows of the quarantine.

    ``units`` has, for each unit, how many rows of the table and of the quarantine are its own;
    None makes the whole shard one unit. ``seconds`` says what took how long, by name. ``notes``
    are what else the stage noticed, by kind; its record keeps them. They are sets of texts, so that
    a unit that is done again adds nothing twice. ``digests`` has for each unit a digest of what it
    was made from, where the stage gives one; its record keeps them too.
    """

    rows: pa.Table
    quarantined: pa.Table
    units: Sequence[tuple[int, int]] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    digests: Sequence[str] = ()

    def __post_init__(self) -> None:
        counts = self.unit_counts.sum(axis=0)
        if tuple(counts) != (self.rows.num_rows, self.quarantined.num_rows):
            raise ValueError(
                f"the units count {counts.tolist()} rows, the tables hold "
                f"{[self.rows.num_rows, self.quarantined.num_rows]}"
            )

    @property
    def unit_counts(self) -> np.ndarray:
        """Rows of the table and of the quarantine per unit, int64 (units, 2)."""
        units = self.units
        if units is None:
            units = [(self.rows.num_rows, self.quarantined.num_rows)]
        return np.asarray(units, dtype=np.int64).reshape(-1, 2)

    @property
    def failed_units(self) -> list[int]:
        """Numbers of the units with rows in quarantine."""
        return np.flatnonzero(self.unit_counts[:, 1]).tolist()

    def replaced(self, numbers: Sequence[int], again: "Outcome") -> "Outcome":
        """Exchange the named units for what they gave when they were done again.

        Args:
            numbers: Units of this outcome, ascending.
            again: Their new outcome, one unit each, in the same order.
        """
        counts, new = self.unit_counts, again.unit_counts
        if len(new) != len(numbers):
            raise ValueError(f"{len(numbers)} units were done again, {len(new)} came back")
        merged = counts.copy()
        merged[list(numbers)] = new
        digests = list(self.digests)
        if digests and again.digests:
            for number, digest in zip(numbers, again.digests, strict=True):
                digests[number] = digest
        return Outcome(
            _exchange(self.rows, counts[:, 0], again.rows, new[:, 0], numbers),
            _exchange(self.quarantined, counts[:, 1], again.quarantined, new[:, 1], numbers),
            [(int(rows), int(held)) for rows, held in merged],
            again.seconds,
            _united(self.notes, again.notes),
            digests,
        )

    def moved(self, keep: Sequence[bool], refusals: pa.Table) -> "Outcome":
        """Move rows of the table to the quarantine, each within its unit.

        Args:
            keep: For each row of the table, whether it stays.
            refusals: A quarantine row for each row that does not stay, in their order.
        """
        counts = self.unit_counts
        stays = np.asarray(keep, dtype=bool)
        owner = np.repeat(np.arange(len(counts)), counts[:, 0])
        holder = np.repeat(np.arange(len(counts)), counts[:, 1])
        gone = np.bincount(owner[~stays], minlength=len(counts))
        order = np.argsort(np.concatenate([holder, owner[~stays]]), kind="stable")
        quarantined = pa.concat_tables([self.quarantined, refusals.cast(QUARANTINE_SCHEMA)])
        return Outcome(
            self.rows.filter(pa.array(stays)),
            quarantined.take(pa.array(order)),
            [(int(rows - n), int(held + n)) for (rows, held), n in zip(counts, gone, strict=True)],
            notes=self.notes,
            digests=self.digests,
        )

    def without(self, rows: Sequence[bool], quarantined: Sequence[bool]) -> "Outcome":
        """Drop rows of the table and of the quarantine; their units stay.

        Args:
            rows: For each row of the table, whether it is dropped.
            quarantined: For each row of the quarantine.
        """
        counts = self.unit_counts.copy()
        kept = []
        for column, (table, drops) in enumerate(
            ((self.rows, rows), (self.quarantined, quarantined))
        ):
            stays = ~np.asarray(drops, dtype=bool)
            owner = np.repeat(np.arange(len(counts)), self.unit_counts[:, column])
            counts[:, column] = np.bincount(owner[stays], minlength=len(counts))
            kept.append(table.filter(pa.array(stays)))
        units = None if self.units is None else [(int(n), int(held)) for n, held in counts]
        return replace(self, rows=kept[0], quarantined=kept[1], units=units)

    def noted(self, kind: str, texts: Sequence[str]) -> "Outcome":
        """Add notes."""
        return replace(self, notes=_united(self.notes, {kind: texts}))

    def same_tables(self, other: "Outcome") -> bool:
        """Return whether both say the same."""
        return bool(self.rows.equals(other.rows) and self.quarantined.equals(other.quarantined))


def _united(
    first: Mapping[str, Sequence[str]], second: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    kinds = sorted({*first, *second})
    return {kind: sorted({*first.get(kind, ()), *second.get(kind, ())}) for kind in kinds}


def _exchange(
    table: pa.Table,
    counts: np.ndarray,
    new: pa.Table,
    new_counts: np.ndarray,
    numbers: Sequence[int],
) -> pa.Table:
    """Cut the named units' rows out of a table and put the new ones in their places."""
    starts, new_starts = _starts(counts), _starts(new_counts)
    pieces, position = [], 0
    for place, number in enumerate(numbers):
        pieces.append(table.slice(position, starts[number] - position))
        pieces.append(new.cast(table.schema).slice(new_starts[place], new_counts[place]))
        position = starts[number] + counts[number]
    pieces.append(table.slice(position))
    return pa.concat_tables(pieces).combine_chunks()


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)


def encode_units(outcome: Outcome) -> Runs:
    """Return the units' counts run by run: ``[units, rows each, quarantined each]``."""
    return encode_counts(outcome.unit_counts)


def encode_counts(counts: np.ndarray) -> Runs:
    """Return counts per unit, (units, 2), as :func:`encode_units` does."""
    runs: Runs = []
    for rows, held in counts.tolist():
        if runs and runs[-1][1:] == [rows, held]:
            runs[-1][0] += 1
        else:
            runs.append([1, rows, held])
    return runs


def decode_units(runs: Runs) -> list[tuple[int, int]]:
    """Return the counts per unit that :func:`encode_units` shortened."""
    return [(rows, held) for count, rows, held in runs for _ in range(count)]
