"""Rows of the pool as squares: each slot what decoding that image alone gives."""

import numpy as np
import pyarrow as pa
import pytest

from echostill.curation.scoring.decoding import PartDecoder, ahead, shards
from echostill.platform.imaging.images import encode_png, to_square
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table, write_table

ROWS, BAD = 23, (4, 17)


@pytest.fixture
def pool(tmp_path):
    """A pool of two parts; grey but for two pictures, two of them rotten."""
    rng = np.random.default_rng(0)
    pictures = []
    for row in range(ROWS):
        shape = (*rng.integers(10, 40, 2), 3) if row in (9, 20) else tuple(rng.integers(10, 40, 2))
        pictures.append(rng.integers(0, 255, shape, dtype=np.uint8))
    data = [b"rotten" if row in BAD else encode_png(p) for row, p in enumerate(pictures)]
    table = pa.table({"image_id": [f"{row:02d}" for row in range(ROWS)], "image": data})
    storage = Store(str(tmp_path)).pool()
    write_table(storage, table, stage="ingest", fingerprint={}, rows_per_part=15)
    return Table.open(storage, "ingest"), pictures


def assert_is(batches, expected_rows, pictures, sizes):
    rows = iter(expected_rows)
    for batch in batches:
        for slot in range(len(batch.ids)):
            if slot not in batch.slots:
                assert all(not square[slot].any() for square in batch.squares.values())
                continue
            row = next(rows)
            assert batch.ids[slot] == f"{row:02d}"
            assert (slot in batch.errors) == (row in BAD)
            for size in sizes:
                square = batch.squares[size][slot]
                right = np.zeros((3, size, size)) if row in BAD else to_square(pictures[row], size)
                assert np.array_equal(np.broadcast_to(square, (3, size, size)), right)
    assert next(rows, None) is None


@pytest.mark.parametrize("rows_per_shard", [4, 6, 100])
def test_every_row_is_in_one_shard_as_its_own_square(pool, rows_per_shard):
    table, pictures = pool
    decoder = PartDecoder(table.storage, (8, 16), batch_size=4)
    cut = shards(table, rows_per_shard)
    assert all(stop - start <= rows_per_shard for _, start, stop in cut)
    batches = [batch for payload in cut for batch in ahead(decoder.batches(payload))]
    assert_is(batches, range(ROWS), pictures, (8, 16))
    assert {square.shape[1] for batch in batches for square in batch.squares.values()} == {1, 3}
    messages = {m for batch in batches for _, m in batch.errors.values()}
    assert len(messages) == 1
    assert messages.pop().startswith("the staged image is not an image")


def test_single_rows_keep_their_places(pool):
    table, pictures = pool
    decoder = PartDecoder(table.storage, (8,), batch_size=4)
    name = table.part_names[0]
    batches = list(decoder.batches([name, 2, 14], [1, 2, 11]))
    assert [list(batch.slots) for batch in batches] == [[1, 2], [3]]
    assert [len(batch.ids) for batch in batches] == [4, 4]
    assert_is(batches, [3, 4, 13], pictures, (8,))


def test_an_empty_part_is_a_shard_of_nothing(tmp_path):
    storage = Store(str(tmp_path)).pool()
    empty = pa.table({"image_id": pa.array([], pa.string()), "image": pa.array([], pa.binary())})
    write_table(storage, empty, stage="ingest", fingerprint={})
    (payload,) = shards(Table.open(storage, "ingest"), 10)
    decoder = PartDecoder(storage, (8,), 4)
    assert list(decoder.batches(payload)) == []


def test_what_fails_while_decoding_ahead_is_not_lost():
    def batches():
        yield 1
        raise OSError("gone")

    reading = ahead(batches())
    assert next(reading) == 1
    with pytest.raises(OSError, match="gone"):
        next(reading)


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_what_is_made_ahead_comes_in_order_and_no_further(depth):
    made = []

    def items():
        for number in range(20):
            made.append(number)
            yield number

    seen = []
    for number in ahead(items(), depth):
        assert len(made) <= number + 1 + depth
        seen.append(number)
    assert seen == list(range(20))
