"""GPT against recordings of transformers, and its card."""

import pytest

from llmctl.card import validate
from llmctl.testing.golden import check_all
from llmctl_gpt3 import CARD


def test_the_card_is_valid_and_counts_are_the_published():
    assert validate(CARD) == []
    assert {size: CARD.count(CARD.dims_of(size)) for size in CARD.sizes} == {
        size: row.parameters for size, row in CARD.sizes.items()
    }


@pytest.mark.assets
@pytest.mark.parametrize("case", ["gpt2_default", "gpt2_scale_reorder"])
def test_recorded_results_are_repeated(assets, case):
    check_all(assets / "goldens" / case)
