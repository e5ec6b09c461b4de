"""Errors that end a command in an orderly way: what it says of them, and its exit code. Nothing here imports paddle."""

from __future__ import annotations

from llmctl.errors import LlmctlError
from llmctl.runtime import streams

USER_ERROR, NO_READER = 2, 141
"""Exit codes of a mistake of the user, and of a standard output that nobody reads any more."""


def ending(error: BaseException) -> tuple[str, int] | None:
    """What a command says of an error, empty if nothing, and its exit code; None = another error, such as a bug.

    Args:
        error: The error.
    """
    if isinstance(error, LlmctlError):
        return f"error: {error}", USER_ERROR
    if isinstance(error, MemoryError):
        return f"error: not enough memory{f': {error}' if str(error) else ''}", USER_ERROR
    if isinstance(error, BrokenPipeError):
        streams.drop_output()
        return "", NO_READER
    if isinstance(error, OSError) and streams.is_output_error(error):
        streams.drop_output()
        return streams.output_lost(error), 1
    return None
