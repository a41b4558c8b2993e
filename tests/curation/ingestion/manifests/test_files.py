import posixpath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.ingestion.keys import all_under_key, under_key
from echostill.curation.ingestion.listing import list_files
from echostill.curation.ingestion.manifests.files import Sources
from echostill.curation.ingestion.manifests.words import BATCH, Words
from echostill.curation.ingestion.settings import IngestSettings, Source

KEY = b"0123456789abcdef"
WORD = st.sampled_from(["", "P1", "p1", "12345.0", "12345", "ANONYMOUS", "N/A", "Größe", "\udc80"])
PATIENT = WORD.filter(lambda word: word != "\udc80")
SOURCE = st.builds(
    Source,
    file=st.text("ab/\udc80", max_size=4),
    name=st.text("abé/", max_size=4),
    id=WORD,
    group=WORD,
    patient=PATIENT,
    device=WORD,
    label=WORD,
    size=st.integers(0, 2**40),
    skip=st.sampled_from([(), ("x", "y")]),
    study=PATIENT,
)


@settings(max_examples=15)
@given(st.lists(SOURCE, max_size=6), st.lists(SOURCE, max_size=3), st.data())
def test_columns_are_the_sources_that_they_were_made_of(first, second, data):
    both = [*first, *second]
    sources = Sources.joined([Sources.of(first, "/a"), Sources.of(second, "/b")])
    assert list(sources) == both
    assert list(sources.words["root"]) == ["/a"] * len(first) + ["/b"] * len(second)
    start, stop, step = (data.draw(st.integers(-9, 9)) for _ in range(3))
    assert list(sources[start : stop : step or 1]) == both[start : stop : step or 1]
    for row, source in enumerate(both):
        assert sources[row] == sources[row - len(both)] == source
    assert list(all_under_key(sources, KEY)) == [under_key(source, KEY) for source in both]


@settings(max_examples=25)
@given(st.lists(WORD, max_size=9), st.lists(WORD, min_size=9, max_size=9))
def test_words_are_the_values_of_each_row(values, others):
    words = Words.joined([Words.of(["?", *values])[1:], Words.same("s", 2)])
    rows = [*values, "s", "s"]
    assert list(words) == list(words.met()) == rows
    assert words.met().distinct == list(dict.fromkeys(rows))
    assert list(words.map(len)) == [len(value) for value in rows]
    assert words.where(bool).tolist() == [bool(value) for value in rows]
    second = Words.of((others * 2)[: len(rows)])
    assert list(words.or_else(second)) == [a or b for a, b in zip(rows, second, strict=True)]
    odd = np.arange(len(rows)) % 2 == 1
    assert list(words.replaced(odd, "!")) == ["!" if k % 2 else v for k, v in enumerate(rows)]
    assert list(words.changed({1: "x"})) == [rows[0], "x", *rows[2:]]


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_a_path_needs_no_second_look_where_it_is_a_name_already(tmp_path, place):
    """A row that is taken as it stands is the same file as one that is looked at part by part."""
    rows = [
        f"{n % 3}/{name}{n}.png" for n in range(BATCH + 9) for name in ("x y", "é", "a#", "..b")
    ]
    lists, base = tmp_path / "lists", tmp_path / ("lists" if place == "inside" else "other")
    lists.mkdir()
    listed = []
    for number, path in enumerate(("{}", "./{}", "z/../{}", str(base) + "/{}")):
        if place == "outside" and number < 3:
            path = f"{base}//{path}"
        (lists / f"{number}.txt").write_text("\n".join(path.format(row) for row in rows))
        listed.append(list(list_files(IngestSettings(source=str(lists / f"{number}.txt"))).sources))
    assert [one.name for one in listed[0]] == rows
    assert [one.file for one in listed[0]] == [posixpath.join(base, row) for row in rows]
    assert all(one == listed[0] for one in listed)
