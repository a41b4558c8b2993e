import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostill.curation.deidentification.pseudonyms import (
    Pseudonymiser,
    check_key,
    key_check,
    key_shares,
    keyed_hash,
    recovered_key,
    run_key,
    spread,
)
from echostill.platform.errors import UsageError

KEY = b"sixteen bytes or more"


def refused(source, identity, error_class, message):
    return {"source": source, "id": identity, "error_class": error_class, "message": message}


def test_the_hash_is_half_of_an_hmac_of_sha256():
    expected = hmac.new(KEY, b"name\0Doe", hashlib.sha256).hexdigest()[:32]
    assert keyed_hash(KEY, "name", "Doe") == expected
    assert keyed_hash(KEY, "group", "Doe") != expected


def test_short_keys_are_refused_with_a_way_to_make_one():
    with pytest.raises(UsageError, match="openssl rand"):
        check_key(b"secret")
    check_key(b"0123456789abcdef")


def test_the_check_value_tells_keys_apart_and_not_the_key():
    assert key_check(KEY) != key_check(KEY + b"!")
    assert len(key_check(KEY)) == 8
    assert KEY.hex()[:8] != key_check(KEY)


def test_the_key_of_a_run_is_found_again_from_the_files_and_from_them_alone():
    assert run_key([b"a", b"b"]) == run_key([b"a", b"b"])
    assert run_key([b"ab", b""]) != run_key([b"a", b"b"])
    assert run_key([b""]) != run_key([b""])  # nothing to derive it from: random


@given(st.lists(st.integers(), max_size=60), st.integers(1, 20))
def test_spread_takes_some_in_their_order(items, count):
    taken = spread(list(enumerate(items)), count)
    assert len(taken) == min(count, len(items))
    assert taken == sorted(set(taken))
    assert taken[:1] == list(enumerate(items))[:1]


def test_names_and_groups_are_hashed_and_the_frame_stays():
    pseudonymiser = Pseudonymiser(KEY, hidden=True)
    row = pseudonymiser.row({"source": "Doe/cine.dcm#12", "group_id": "Doe", "organ": "liver"})
    assert row["source"] == f"{keyed_hash(KEY, 'name', 'Doe/cine.dcm')}#12"
    assert row["group_id"] == keyed_hash(KEY, "group", "Doe")
    assert row["organ"] == "liver"
    assert pseudonymiser.name("a#b") == keyed_hash(KEY, "name", "a#b")


def test_nothing_is_hashed_where_names_are_wanted():
    pseudonymiser = Pseudonymiser(KEY, hidden=False)
    item = refused("Doe.png", "Doe.png", "DecodeError", "the file Doe.png is empty")
    assert pseudonymiser.refusal(item) is item
    assert pseudonymiser.row({"source": "Doe.png", "group_id": "Doe"})["source"] == "Doe.png"
    assert pseudonymiser.values({"source": "Doe"}, ["source"]) == {}


def test_a_message_does_not_tell_the_name():
    pseudonymiser = Pseudonymiser(KEY, hidden=True)
    message = "the file /data/DOE_Jane/scan 7.png of Doe_Jane is empty: scan 7 holds 0 bytes"
    item = refused("Doe_Jane/scan 7.png", "Doe_Jane/scan 7.png", "DecodeError", message)
    hidden = pseudonymiser.refusal(item, group="Doe")
    assert "doe" not in hidden["message"].casefold()
    assert "scan 7" not in hidden["message"]
    assert "is empty" in hidden["message"]
    assert hidden["id"] == hidden["source"] == keyed_hash(KEY, "name", "Doe_Jane/scan 7.png")
    known = pseudonymiser.refusal(refused("Doe.png", "0f3a", "DecodeError", "is empty"))
    assert known["id"] == "0f3a"


def test_another_files_name_in_a_listing_error_is_its_hash():
    pseudonymiser = Pseudonymiser(KEY, hidden=True)
    said = "listed more than once (first as 'Doe/a.png'); it is read once"
    hidden = pseudonymiser.refusal(refused("b.png", "b.png", "ListingError", said))
    assert hidden["message"] == said.replace("Doe/a.png", keyed_hash(KEY, "name", "Doe/a.png"))


def test_the_configuration_that_is_kept_tells_no_name():
    pseudonymiser = Pseudonymiser(KEY, hidden=True)
    shown = pseudonymiser.values({"source": ("/a/Doe", "/b"), "root": None}, ["source", "root"])
    assert shown == {
        "source": (keyed_hash(KEY, "name", "/a/Doe"), keyed_hash(KEY, "name", "/b")),
    }


def test_the_key_is_in_no_representation():
    assert "sixteen" not in repr(Pseudonymiser(KEY, hidden=True))


@given(st.lists(st.binary(max_size=4), max_size=12, unique=True), st.data())
def test_more_than_half_of_the_files_open_the_key_of_a_run_and_fewer_do_not(contents, data):
    key = run_key(contents)
    kept = json.loads(json.dumps(key_shares(key, contents)))
    files = [content for content in contents if content]
    count = data.draw(st.integers(0, len(files)))
    unchanged = data.draw(st.permutations(files))[:count]
    mended = [b"mended %d" % number for number in range(len(files) - count)]
    found = recovered_key(kept, [*mended, *unchanged])
    assert found == (key if count > len(files) / 2 else None)
    assert key.hex() not in json.dumps(kept)


def test_keys_of_the_configuration_stay_readable_in_a_message():
    """They tell what to set; a hash in their place tells nobody anything."""
    pseudonymiser = Pseudonymiser(KEY, hidden=True)
    said = "row 3 of 'doe.csv' names a file outside of its folder: give an absolute path, or set "
    hidden = pseudonymiser.refusal(refused("../x", "../x", "ListingError", f"{said}'root'"))
    assert hidden["message"].endswith("or set 'root'")
    assert "doe" not in hidden["message"]


def test_what_a_file_is_stays_readable_whatever_it_is_called():
    pseudonymiser = Pseudonymiser(KEY, hidden=True)
    said = "the file is no picture of ultrasound: its modality is SEG (a segmentation)"
    item = refused("Doe/SEG.dcm", "Doe/SEG.dcm", "NoImageError", said)
    hidden = pseudonymiser.refusal(item)
    name = keyed_hash(KEY, "name", "Doe/SEG.dcm")
    assert hidden == {**item, "source": name, "id": name}
