"""Mixtral and Mistral against recordings of transformers, and their cards."""

import pytest

from llmctl.card import validate
from llmctl.testing.golden import check_all
from llmctl_mixtral import CARD, mistral

CARDS = {card.name: card for card in (CARD, mistral.CARD)}


@pytest.mark.parametrize("name", CARDS)
def test_the_card_is_valid_and_counts_are_the_published(name):
    card = CARDS[name]
    assert validate(card) == []
    assert {size: card.count(card.dims_of(size)) for size in card.sizes} == {
        size: row.parameters for size, row in card.sizes.items()
    }


@pytest.mark.assets
@pytest.mark.parametrize("case", ["mixtral_e4k2", "mixtral_e4k2_aux", "mistral_nowindow"])
def test_recorded_results_are_repeated(assets, case):
    check_all(assets / "goldens" / case)
