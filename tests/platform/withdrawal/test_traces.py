"""Names of what is withdrawn go out of texts and JSON; what only looks like them stays."""

import json

import pytest

from echostill.platform.withdrawal.traces import GONE, Traces

ID, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2
TRACES = Traces(
    frozenset({ID}),
    frozenset({"a.png", "ward 1/Müller.dcm#3"}),
    frozenset({"ward 1/Müller.dcm"}),
    frozenset({"liver"}),
)


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        (f"near copy of {ID}, which is kept", f"near copy of {GONE}, which is kept"),
        (f"review/{ID}.png", f"review/{GONE}.png"),
        ("'ward 1/Müller.dcm#3' is damaged", f"'{GONE}' is damaged"),
        ("see a.png.", f"see {GONE}"),
        ("see /data/x/a.png", f"see {GONE}"),
        ("s3://hospital/a.png", f"s3:{GONE}"),
    ],
)
def test_names_go(text, mended):
    assert TRACES.mend(text) == mended


@pytest.mark.parametrize(
    "text", ["aa.png", "a.png.tar", "b/a.png", "liver", OTHER, f"{OTHER}{OTHER}", ID[:-1], ""]
)
def test_what_is_no_name_stays(text):
    assert TRACES.mend(text) is text


def test_plain_values_are_mended_at_every_depth():
    values = {"a": [ID, {ID: 1}], "b": (OTHER, 2.5, None)}
    mended = {"a": [GONE, {GONE: 1}], "b": [OTHER, 2.5, None]}
    assert TRACES.mend_values(values) == mended
    assert ID not in json.dumps(TRACES.mend_values(values))


def test_the_users_own_group_is_no_word_of_texts_but_its_hash_is():
    assert Traces(frozenset(), frozenset(), frozenset(), frozenset({OTHER})).mend(OTHER) == GONE
