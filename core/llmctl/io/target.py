"""Whether a command may write a folder: known before anything heavy, and ``--overwrite`` deletes only what such a command wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmctl.errors import ConfigError


def check_target(folder: Path, overwrite: bool, named: str, what: str, holds: Callable[[Path], bool]) -> None:
    """Checks that a folder is new or empty, or may be replaced.

    Args:
        folder: The folder.
        overwrite: Whether the user allows to replace it.
        named: How the user gave it, such as ``--output runs/a``.
        what: What may be replaced, such as ``an exported model``.
        holds: Whether a folder holds that, and nothing else.

    Raises:
        ConfigError: It exists and may not be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise ConfigError(f"{named} already exists; choose another folder, or add --overwrite")
    if not folder.is_dir():
        raise ConfigError(f"{named} is a file; name a folder")
    if not holds(folder):
        raise ConfigError(
            f"{named} holds other things than {what}, and --overwrite would delete them; choose another folder"
        )


def has_folders(folder: Path) -> bool:
    """Whether there are folders in a folder."""
    return any(path.is_dir() for path in folder.iterdir())
