"""Qwen, Qwen2 and Qwen3 against recordings of the original code."""

import pytest

from llmctl.testing import check_golden


@pytest.mark.assets
@pytest.mark.parametrize("case", ["qwen2_bias", "qwen2_tied", "qwen3_qknorm"])
def test_recorded_results_of_the_later_generations_are_repeated(assets, case):
    check_golden(assets / "goldens" / case)


@pytest.mark.assets
@pytest.mark.parametrize("case", ["qwen1_basic", "qwen1_long"])
def test_recorded_results_of_the_first_generation_are_repeated(assets, case):
    check_golden(assets / "goldens_remote" / case)
