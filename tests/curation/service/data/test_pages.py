import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.service.data import pages
from echostill.curation.service.data.pages import (
    NUMBERS,
    SORTS,
    SampleFinder,
    SampleQuery,
    bounds,
    check_sort,
    page,
    read_cursor,
    sample_query,
    write_cursor,
)
from echostill.curation.service.problems import Problem


@pytest.fixture(scope="module")
def coreset(state):
    return state.coreset("default")


@pytest.fixture(scope="module")
def everything(coreset, state):
    """All samples with all columns that may be filtered, in the order of ids."""
    samples = coreset.samples(np.arange(len(coreset)))
    for sample in samples:
        sample |= state.catalogue.image(sample["row"])
        sample |= {
            name: value
            for name, value in state.catalogue.scores(sample["row"]).items()
            if name != "gradient"
        }
    return samples


QUERIES = st.builds(
    SampleQuery,
    selected=st.sampled_from(["true", "false", "any"]),
    organ=st.lists(st.sampled_from(["liver", "heart", "", "none"]), max_size=2).map(tuple),
    device=st.lists(st.sampled_from(["CX50", ""]), max_size=1).map(tuple),
    group_id=st.lists(st.sampled_from(["clip3", "clip4", "no"]), max_size=2).map(tuple),
    cluster=st.lists(st.integers(-1, 9), max_size=3).map(tuple),
    source=st.sampled_from(["", "ward 1", "scan_00", "%", "nowhere"]),
    least=st.lists(st.tuples(st.sampled_from(NUMBERS), st.floats(-1, 60)), max_size=1).map(tuple),
    most=st.lists(st.tuples(st.sampled_from(NUMBERS), st.floats(-1, 60)), max_size=1).map(tuple),
    sort=st.builds(str.__add__, st.sampled_from(["", "-"]), st.sampled_from(SORTS)),
)


def kept(sample, query):
    return (
        (query.selected == "any" or sample["selected"] == (query.selected == "true"))
        and (not query.organ or sample["organ"] in query.organ)
        and (not query.device or sample["device"] in query.device)
        and (not query.group_id or sample["group_id"] in query.group_id)
        and (not query.cluster or sample["cluster"] in query.cluster)
        and query.source in sample["source"]
        and all(sample[name] >= bound for name, bound in query.least)
        and all(sample[name] <= bound for name, bound in query.most)
    )


@settings(max_examples=200, deadline=None)
@given(query=QUERIES)
def test_pages_hold_what_a_filter_of_plain_rows_holds(coreset, everything, query):
    expected = [sample for sample in everything if kept(sample, query)]
    name = query.sort.removeprefix("-")
    if name == "image_id":
        expected = expected[::-1] if query.sort.startswith("-") else expected
    else:
        sign = -1 if query.sort.startswith("-") else 1
        expected.sort(key=lambda sample: sign * sample[name])
    finder, found, cursor = SampleFinder(), [], None
    while True:
        answer = page(coreset, finder, query, 50, cursor)
        assert answer["total"] == len(expected)
        found += answer["items"]
        cursor = answer["next"]
        if cursor is None:
            break
    assert [item["image_id"] for item in found] == [item["image_id"] for item in expected]


def test_answers_are_kept_within_their_bytes(coreset):
    finder = SampleFinder(cache_bytes=3000)
    for organ in ("liver", "heart", "lung"):
        for sort in ("distance", "-distance"):
            finder.find(coreset, SampleQuery(selected="any", organ=(organ,), sort=sort))
    assert sum(found.nbytes for found in finder._cache.values()) <= 3000


@pytest.mark.parametrize(
    "cursor", ["", "x", "!!!", "WzFd", "bnVsbA", "W1tbW10", write_cursor(-1, "d"), "é", "A" * 500]
)
def test_other_texts_are_no_cursors(cursor):
    with pytest.raises(Problem) as caught:
        read_cursor(cursor, "d")
    assert caught.value.status == 400


def test_a_cursor_of_another_question_is_stale(coreset):
    finder = SampleFinder()
    first = page(coreset, finder, SampleQuery(sort="distance"), 10, None)
    with pytest.raises(Problem) as caught:
        page(coreset, finder, SampleQuery(sort="gradient"), 10, first["next"])
    assert (caught.value.status, caught.value.kind) == (409, "stale-cursor")


@pytest.mark.parametrize("text", ["distance", "distance:", "distance:nan", "distance:inf", "x:1"])
def test_bounds_that_are_none(text):
    with pytest.raises(Problem) as caught:
        bounds([text])
    assert caught.value.status == 400


def test_a_misspelt_column_is_named():
    with pytest.raises(Problem, match="Did you mean 'distance'"):
        check_sort("-distence")
    assert bounds(["distance:1e-3"]) == (("distance", 1e-3),)
    assert not math.isnan(bounds(["mean:0"])[0][1])


VALUES = st.lists(
    st.sampled_from([0.0, -0.0, 1.5, -2.0, float("inf"), float("-inf"), float("nan")]), max_size=60
)


@given(values=VALUES, descending=st.booleans(), count=st.integers(1, 12))
def test_the_first_of_an_order_are_found_without_it(values, descending, count):
    for kind in (np.float32, np.int32):
        if kind is np.int32:
            values = [value for value in values if np.isfinite(value)]
        column = np.array(values, dtype=kind)
        expected = pages._order(column, descending)[:count]
        assert pages._first(column, descending, count).tolist() == expected.tolist()


@given(data=st.data(), rows=st.integers(1, 400), count=st.integers(1, 12))
def test_the_first_kept_of_an_order_are_found_without_the_rest(data, rows, count):
    order = np.random.default_rng(rows).permutation(rows).astype(np.uint32)
    kept = np.array(data.draw(st.lists(st.integers(0, rows - 1), unique=True)), dtype=np.uint32)
    inside = set(kept.tolist())
    expected = [row for row in order.tolist() if row in inside][:count]
    assert pages._first_kept(order, np.sort(kept), count).tolist() == expected


@pytest.mark.parametrize("selected", ["true", "false", "any"])
@pytest.mark.parametrize("sort", ["image_id", "distance", "-gradient", "cluster", "-cluster_rank"])
def test_a_first_page_is_the_beginning_of_the_whole_order(coreset, selected, sort):
    for organ in ((), ("liver",)):
        query = sample_query(selected=selected, sort=sort, organ=organ)
        whole = SampleFinder().find(coreset, query)
        for finder in (SampleFinder(), SampleFinder(cache_bytes=0)):
            for count in (1, 7, len(coreset)):
                found, total = finder.first(coreset, query, count)
                assert found.tolist() == whole[:count].tolist()
                assert total == len(whole)
