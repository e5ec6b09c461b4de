"""Types of numbers that callers give: integers are integers, and truth values are no numbers."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from llmctl.errors import ConfigError


def is_integer(value: object) -> bool:
    """Whether this is an integer, maybe of numpy, and not a truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether this is a number, and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_types(
    owner: Any,
    integers: Sequence[str] = (),
    numbers: Sequence[str] = (),
    flags: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Passes when attributes have their types.

    Args:
        owner: The object.
        integers: Attributes that are integers.
        numbers: Attributes that are numbers.
        flags: Attributes that are truth values.
        optional: Attributes that are integers or None.

    Raises:
        ConfigError: One has another type.
    """
    rules = (
        (integers, is_integer, "an integer"),
        (optional, lambda value: value is None or is_integer(value), "an integer or None"),
        (numbers, is_number, "a number"),
        (flags, lambda value: isinstance(value, bool), "true or false"),
    )
    for names, fits, what in rules:
        for name in names:
            value = getattr(owner, name)
            if not fits(value):
                raise ConfigError(f"{name}={value!r} must be {what}")
