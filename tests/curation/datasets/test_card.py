from collections import Counter

from echostill.curation.datasets.card import Facts, dataset_card
from echostill.curation.datasets.forms import FORMS


def test_the_card_of_a_merged_pool_says_which_stores_it_is_from():
    one = {"store": "north", "merged": 7, "groups": 2, "organs": "liver 7", "licence": "CC0"}
    contributors = [{**one, "store": "south", "merged": 3, "licence": ""}, one]
    digests = {"pool": "p", "coreset": "c"}
    counts = {"split": Counter(train=5)}
    facts = Facts("default", "", 5, 2, 10, counts, {}, {"source": ["x"]}, digests, contributors)
    card = dataset_card(facts, FORMS["csv"])
    first = card.index("`north`: 7 images of 2 groups; organs: liver 7; licence: CC0")
    assert first < card.index("`south`: 3 images of 2 groups; organs: liver 7; licence: unknown")
    assert "`x`" not in card
