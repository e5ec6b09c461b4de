"""What both hubs say of errors."""

from __future__ import annotations

import errno
from pathlib import Path

from llmctl.hub.name import HubName

LONGEST = 160
"""Characters of a library's message."""


def no_space(name: HubName, cache: Path, variable: str) -> str:
    """The message for a disk that is full.

    Args:
        name: The model.
        cache: The folder that it is downloaded into.
        variable: The environment variable that names another.
    """
    return (
        f"{name} cannot be downloaded: no space left in {cache}; free some, or set {variable} to a folder on another disk. "
        "What has been downloaded is kept"
    )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is that of a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def first_line(error: BaseException) -> str:
    """The beginning of an error's message, or its kind."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= LONGEST else f"{lines[0][:LONGEST]}..."
