"""Exchanging the units of a shard, against lists of rows that are put together by hand."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.platform.shards.outcome import Outcome, decode_units, encode_units
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA

SCHEMA = pa.schema([("unit", pa.int64()), ("row", pa.int64()), ("attempt", pa.int64())])
counts = st.tuples(st.integers(0, 3), st.integers(0, 2))


def held(unit, number, attempt):
    words = {"stage": "toy", "id": f"{unit}.{number}", "source": "", "error_class": "Bad"}
    return {**words, "message": str(attempt)}


def outcome(units, numbers=None, attempt=0):
    """What a worker would return for units of these numbers and counts."""
    numbers = range(len(units)) if numbers is None else numbers
    rows = [
        {"unit": unit, "row": row, "attempt": attempt}
        for unit, (good, _) in zip(numbers, units, strict=True)
        for row in range(good)
    ]
    bad = [
        held(unit, row, attempt)
        for unit, (_, lost) in zip(numbers, units, strict=True)
        for row in range(lost)
    ]
    tables = pa.Table.from_pylist(rows, SCHEMA), pa.Table.from_pylist(bad, QUARANTINE_SCHEMA)
    return Outcome(*tables, list(units))


@settings(deadline=None)
@given(st.lists(counts, max_size=12), st.data())
def test_units_done_again_take_the_places_of_the_old(units, data):
    first = outcome(units)
    numbers = sorted(data.draw(st.sets(st.sampled_from(range(len(units)))))) if units else []
    again = [data.draw(counts) for _ in numbers]
    merged = first.replaced(numbers, outcome(again, numbers, attempt=1))
    rows, bad, expected = [], [], list(units)
    for unit, (good, lost) in enumerate(units):
        attempt = int(unit in numbers)
        if attempt:
            good, lost = expected[unit] = again[numbers.index(unit)]
        rows += [{"unit": unit, "row": row, "attempt": attempt} for row in range(good)]
        bad += [held(unit, row, attempt) for row in range(lost)]
    assert merged.rows.to_pylist() == rows
    assert merged.quarantined.to_pylist() == bad
    assert list(merged.units) == expected
    assert merged.failed_units == [unit for unit, (_, lost) in enumerate(expected) if lost]


@settings(deadline=None)
@given(st.lists(counts, max_size=12), st.data())
def test_moved_rows_stay_in_their_unit(units, data):
    first = outcome(units)
    keep = [data.draw(st.booleans()) for _ in range(first.rows.num_rows)]
    leaving = [row for row, kept in zip(first.rows.to_pylist(), keep, strict=True) if not kept]
    refused = [held(row["unit"], f"moved {row['row']}", 0) for row in leaving]
    moved = first.moved(keep, pa.Table.from_pylist(refused, QUARANTINE_SCHEMA))
    assert moved.rows.to_pylist() == [
        row for row, kept in zip(first.rows.to_pylist(), keep, strict=True) if kept
    ]
    bad = []
    for unit, (_, lost) in enumerate(units):
        bad += [held(unit, row, 0) for row in range(lost)]
        bad += [row for row in refused if row["id"].startswith(f"{unit}.moved")]
    assert moved.quarantined.to_pylist() == bad
    totals = [sum(count) for count in units]
    assert [sum(count) for count in moved.units] == totals


@settings(deadline=None)
@given(st.lists(counts, max_size=30))
def test_the_short_form_of_the_units_says_the_same(units):
    assert decode_units(encode_units(outcome(units))) == units


def test_a_thousand_whole_files_are_one_entry():
    assert encode_units(outcome([(1, 0)] * 1000 + [(0, 1)])) == [[1000, 1, 0], [1, 0, 1]]


def test_counts_that_are_not_the_tables_are_refused():
    good = outcome([(2, 1)])
    with pytest.raises(ValueError, match=r"the units count \[3, 1\] rows"):
        Outcome(good.rows, good.quarantined, [(3, 1)])
    assert np.array_equal(Outcome(good.rows, good.quarantined).unit_counts, [[2, 1]])
