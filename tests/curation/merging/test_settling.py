"""Which rows of several stores come into one pool, by comparing all pairs."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from echostill.curation.ingestion.identity import digest
from echostill.curation.merging.settling import Settling, apart, new_names

ROW = st.tuples(st.sampled_from("abcdef"), st.sampled_from(["", *"123456"]), st.sampled_from("gh"))
STORE = st.lists(ROW, max_size=6, unique_by=lambda row: row[0])


def brute_force(stores, gone):
    """Return of each row whether it is withdrawn, a copy (of which id), or its id."""
    kept, found = [], []  # (store, id, content) of those that stay
    for number, rows in enumerate(stores):
        for image_id, content, _group in rows:
            same = [one for one in kept if one[0] < number and content and one[2] == content]
            if image_id in gone or content in gone:
                found.append(("withdrawn", ""))
            elif same:
                found.append(("copy", same[0][1]))
            else:
                taken = image_id in {one[1] for one in kept}
                own = digest("content", image_id, content) if taken else image_id
                kept.append((number, own, content))
                found.append(("stays", own))
    return found


@given(st.lists(STORE, min_size=2, max_size=4), st.sets(st.sampled_from("ab12"), max_size=2))
def test_rows_are_settled_as_by_comparing_all_pairs(stores, gone):
    settling = Settling(lambda row: row["image_id"] in gone or row["content_hash"] in gone)
    found = []
    for rows in stores:
        settling.next_store()
        for half in (rows[:3], rows[3:]):  # parts of a store
            ids, contents, groups = zip(*half, strict=True) if half else ((), (), ())
            settled = settling.settle(ids, contents, groups)
            for row, image_id in enumerate(ids):
                if row in settled.withdrawn:
                    found.append(("withdrawn", ""))
                elif row in settled.copies:
                    found.append(("copy", settled.copies[row]))
                else:
                    found.append(("stays", settled.renamed.get(row, image_id)))
            stays = [kind == "stays" for kind, _ in found[len(found) - len(ids) :]]
            assert settled.stays(len(ids)) == stays
    assert found == brute_force(stores, gone)


def test_names_are_found_whatever_their_case_and_blanks():
    names = Counter({"leber": 3, "Acme  One": 2, "": 4, "liver": 1})
    wanted = {"LEBER": "liver", "acme one": "ACME 1", "liver": "liver"}
    assert new_names(names, wanted) == {"leber": "liver", "Acme  One": "ACME 1"}


def test_groups_under_two_keys_are_never_one():
    assert apart("key one", "7") != apart("key two", "7")
    assert apart("key one", "7") == apart("key one", "7") != "7"
