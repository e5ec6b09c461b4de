"""Regular expressions for names of layers in the configuration of an adapter or a model, which are not trusted.

The library ``regex`` runs them, since it can be given a time; Python's own engine may backtrack without end.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llmctl.errors import CheckpointError
from llmctl.io.limits import PATTERN_CHARACTERS, PATTERN_SECONDS


def is_pattern(text: str) -> bool:
    """Whether a text is a regular expression, of no more than ``PATTERN_CHARACTERS``."""
    return not problem(text)


def problem(text: str) -> str:
    """Why a text is no such regular expression; empty = it is one."""
    try:
        _compiled(text)
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:
        return str(error) or type(error).__name__
    return ""


def matches(pattern: str, name: str, where: str, whole: bool = True) -> bool:
    """Whether a pattern matches a name: all of it, or its beginning.

    Args:
        pattern: A regular expression.
        name: Name of a layer.
        where: What has the pattern, for messages.
        whole: False = the beginning is enough.

    Raises:
        CheckpointError: It takes longer than ``PATTERN_SECONDS``.
    """
    compiled = _compiled(pattern)
    try:
        return (compiled.fullmatch if whole else compiled.match)(name, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        raise CheckpointError(
            f"the regular expression {pattern[:80]!r} of {where} takes longer than {PATTERN_SECONDS:g} seconds for the name "
            f"{name}; list the names of its layers instead"
        ) from None


@cache
def _compiled(text: str) -> Any:
    """The expression.

    Raises:
        ValueError: It is not valid, or too long.
    """
    import regex

    if len(text) > PATTERN_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters, more than {PATTERN_CHARACTERS}")
    try:
        return regex.compile(text)
    except regex.error as error:
        raise ValueError(str(error)) from None
