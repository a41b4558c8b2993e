import bisect
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.service.data.columns import (
    SortedTexts,
    codes,
    numbers,
    open_columns,
    write_columns,
)

TABLE = pa.table(
    {
        "id": pa.chunked_array([["a", "b"], ["c"]]),
        "organ": pa.array(["liver", "heart", "liver"]).dictionary_encode(),
        "value": [1.5, None, 3.0],
        "chosen": [True, False, True],
    }
)


def test_a_table_is_mapped_as_it_was(tmp_path):
    path = tmp_path / "t.arrow"
    write_columns(path, TABLE.replace_schema_metadata({"k": "v"}))
    found = open_columns(path)
    assert found.to_pylist() == TABLE.to_pylist()
    assert found.schema.metadata[b"k"] == b"v"
    assert all(column.num_chunks == 1 for column in found.columns)
    assert np.isnan(numbers(found["value"])[1])
    assert numbers(found["chosen"]).tolist() == [True, False, True]
    places, values = codes(found["organ"])
    assert [values[place] for place in places] == ["liver", "heart", "liver"]


def test_an_empty_table_is_mapped(tmp_path):
    write_columns(tmp_path / "t.arrow", TABLE.slice(0, 0))
    assert open_columns(tmp_path / "t.arrow").num_rows == 0


def test_a_killed_write_leaves_nothing_under_the_name(tmp_path):
    code = (
        "import os, pyarrow as pa\n"
        "from pathlib import Path\n"
        "from echostill.curation.service.data import columns\n"
        "from echostill.platform.tables import atomic\n"
        "atomic._sync = lambda path: os.kill(os.getpid(), 9)\n"
        f"columns.write_columns(Path({str(tmp_path)!r}) / 't.arrow', pa.table({{'a': [1]}}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ)
    assert done.returncode == -9
    assert not (tmp_path / "t.arrow").exists()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=6), max_size=40, unique=True), st.text(max_size=6))
def test_texts_are_found_as_bisect_finds_them(texts, wanted):
    # Arrow and bisect agree on the order of UTF-8 bytes.
    texts = sorted((text for text in texts), key=lambda text: text.encode())
    found = SortedTexts(pa.chunked_array([pa.array(texts, pa.large_string())]))
    assert len(found) == len(texts)
    assert [found[row] for row in range(len(found))] == texts
    keys = [text.encode() for text in texts]
    place = bisect.bisect_left(keys, wanted.encode())
    there = place < len(texts) and texts[place] == wanted
    assert found.find(wanted) == (place if there else None)
    prefixed = [row for row, text in enumerate(texts) if text.startswith(wanted)]
    assert list(found.with_prefix(wanted)) == prefixed


@pytest.mark.parametrize("wanted", ["", "\ud800", "a\x00", "zz"])
def test_odd_texts_are_not_found(wanted):
    column = pa.chunked_array([pa.array(["a", "b"], pa.large_string())])
    assert SortedTexts(column).find(wanted) is None


def test_many_threads_may_write_the_same_file_at_once(tmp_path):
    path = tmp_path / "a.arrow"
    table = pa.table({"n": pa.array(np.arange(50_000))})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_columns(path, table), range(40)))
    assert open_columns(path).equals(table)
    assert [file.name for file in tmp_path.iterdir()] == ["a.arrow"]
