"""Checks of the values in an adapter's configuration file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmctl.errors import CheckpointError

Rule = tuple[Callable[[Any], bool], str]
"""(Whether a value is valid, what a valid value is, for the message)."""


def check_values(path: Path, content: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Checks the values of an object; keys that are missing pass.

    Args:
        path: The file, for messages.
        content: The object.
        rules: Key -> rule.

    Raises:
        CheckpointError: Lists the values that are not valid, and what they must be.
    """
    invalid = [
        f"{key}={content[key]!r} must be {expected}" for key, (is_valid, expected) in rules.items()
        if key in content and not is_valid(content[key])
    ]  # fmt: skip
    if invalid:
        raise CheckpointError(f"{path}: {'; '.join(invalid)}")


def is_count(value: Any) -> bool:
    """Whether a value is an integer above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
