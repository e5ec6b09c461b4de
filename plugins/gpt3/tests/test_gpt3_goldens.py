"""GPT against recordings of transformers."""

import pytest

from llmctl.testing import check_golden


@pytest.mark.assets
@pytest.mark.parametrize("case", ["gpt2_default", "gpt2_scale_reorder"])
def test_recorded_results_are_repeated(assets, case):
    check_golden(assets / "goldens" / case)
