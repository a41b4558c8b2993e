"""The cards in words: nothing of a card is left out, and what is inferred is labelled."""

import pytest

from echostill.eval.unius.cards import published_cards
from echostill.eval.unius.catalogue import (
    card_section,
    describe_card,
    describe_cards,
    overview_table,
    totals,
)

CARDS = list(published_cards().values())


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
@pytest.mark.parametrize("words", [describe_card, lambda card: "\n".join(card_section(card))])
def test_everything_is_said_with_its_label(card, words):
    text = " ".join(words(card).split())
    for task in card.tasks:
        assert f"({', '.join(task.names)}) [{task.label}]" in text
    for fact in (card.groups, card.official_split, *card.facts):
        assert f"{' '.join(fact.text.split())} [{fact.label}]" in text
    for layout in card.layouts:
        assert layout.example in text
        assert all(erratum.why in text for erratum in layout.errata)
    assert f"{card.licence.allows} [{card.licence.label}]" in text


def test_the_table_has_a_line_for_each_task():
    lines = overview_table(CARDS)[2:]
    assert len(lines) == 18
    assert all(line.count(" | ") == 6 for line in lines)


def test_columns_stand_below_each_other():
    lines = describe_cards(CARDS).splitlines()
    start = lines[0].index("licence")
    assert all(line[start - 2 : start] == "  " and line[start] != " " for line in lines[:-1])
    assert lines[-1] == totals(CARDS)
