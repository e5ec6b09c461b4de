"""Qwen, Qwen2 and Qwen3 against recordings of the original code, and their cards."""

import pytest

from llmctl.card import validate
from llmctl.testing.golden import check_all
from llmctl_qwen import CARD, qwen2, qwen3

CARDS = {card.name: card for card in (CARD, qwen2.CARD, qwen3.CARD)}


@pytest.mark.parametrize("name", CARDS)
def test_the_card_is_valid_and_counts_are_the_published(name):
    card = CARDS[name]
    assert validate(card) == []
    assert {size: card.count(card.dims_of(size)) for size in card.sizes} == {
        size: row.parameters for size, row in card.sizes.items()
    }


@pytest.mark.assets
@pytest.mark.parametrize("case", ["qwen2_bias", "qwen2_tied", "qwen3_qknorm"])
def test_recorded_results_of_the_later_generations_are_repeated(assets, case):
    check_all(assets / "goldens" / case)


@pytest.mark.assets
@pytest.mark.parametrize("case", ["qwen1_basic", "qwen1_long"])
def test_recorded_results_of_the_first_generation_are_repeated(assets, case):
    check_all(assets / "goldens_remote" / case)
