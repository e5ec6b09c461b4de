"""Mixtral and Mistral against recordings of transformers."""

import pytest

from llmctl.testing import check_golden


@pytest.mark.assets
@pytest.mark.parametrize("case", ["mixtral_e4k2", "mixtral_e4k2_aux", "mistral_nowindow"])
def test_recorded_results_are_repeated(assets, case):
    check_golden(assets / "goldens" / case)
