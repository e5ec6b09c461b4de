"""Bloom against recordings of transformers."""

import pytest

from llmctl.testing.golden import check_all


@pytest.mark.assets
@pytest.mark.parametrize("case", ["bloom_h4", "bloom_h4_postln", "bloom_h6", "bloom_h6_postln"])
def test_recorded_results_are_repeated(assets, case):
    check_all(assets / "goldens" / case)
