"""Reading a configuration file, of llmctl or of another program."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from llmctl.config import file
from llmctl.errors import ConfigError


def read_config_file(path: Path, command: str, allow_ignored: bool = False) -> dict[str, Any]:
    """The configuration in a file; whatever a file of another program has that is not converted is a warning.

    Args:
        path: The file, in YAML or JSON.
        command: The command that the configuration is for.
        allow_ignored: With a file of another program: ignore features that are not supported.

    Raises:
        LlmctlError: The file cannot be read or converted, or is for another command.
    """
    data = file.read_file(path)
    from llmctl.migrate.convert import migrate
    from llmctl.migrate.dialects import dialect_of

    if dialect_of(data) is None:
        return data
    migrated = migrate(data, str(path), allow_ignored)
    if migrated.command != command:
        raise ConfigError(f"{path} is for llmctl {migrated.command}, not for llmctl {command}")
    for note in migrated.notes():
        warnings.warn(f"{path}: {note}", UserWarning, stacklevel=2)
    return migrated.values
