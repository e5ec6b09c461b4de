"""Values of an adapter's configuration: all that are invalid are listed at once."""

import pytest

from llmctl.adapters.config_values import check_values, is_count, is_number
from llmctl.errors import CheckpointError


def test_all_invalid_values_are_listed_and_missing_keys_pass(tmp_path):
    rules = {"r": (is_count, "an integer above 0"), "alpha": (is_number, "a number"), "size": (is_count, "a size")}
    check_values(tmp_path / "a.json", {"r": 1, "alpha": 0.5, "other": "x"}, rules)
    with pytest.raises(
        CheckpointError, match=r"a\.json: r=True must be an integer above 0; alpha=nan must be a number"
    ):
        check_values(tmp_path / "a.json", {"r": True, "alpha": float("nan")}, rules)
