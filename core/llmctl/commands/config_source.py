"""Reading a command's configuration file, whether it is ours or one of PaddleNLP's."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from llmctl.config import file
from llmctl.errors import ConfigError


def read_config_file(path: Path, command: str, allow_ignored: bool = False) -> dict[str, Any]:
    """The configuration in a file for a command; what is left out of an old one is a warning.

    Raises:
        LlmctlError: The file cannot be read, or is an old one that cannot be converted or is for another command.
    """
    data = file.read_file(path)
    from llmctl.migrate.convert import is_old, migrate

    if not is_old(data):
        return data
    migrated = migrate(data, str(path), allow_ignored)
    if migrated.command != command:
        raise ConfigError(f"{path} is for llmctl {migrated.command}, not for llmctl {command}")
    for note in migrated.notes():
        warnings.warn(f"{path}: {note}", UserWarning, stacklevel=2)
    return migrated.values
