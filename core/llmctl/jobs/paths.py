"""Checks of the paths in a configuration."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from llmctl import plugins
from llmctl.config import common
from llmctl.errors import ConfigError
from llmctl.io.atomic import check_writable
from llmctl.io.sizes import parse_bytes

STAGING = Path("/dev/shm")
"""A folder in memory, into which ``output.async_save`` writes checkpoints first."""


def find_path(text: str, key: str, plugin: plugins.Plugin | None) -> Path:
    """The file or folder of a configuration value; ``plugin:`` is the folder of the family's package.

    Args:
        text: The value.
        key: Its key, for messages.
        plugin: The family, if it is known.

    Raises:
        ConfigError: It does not exist.
    """
    if text.startswith("plugin:"):
        if plugin is None:
            raise ConfigError(f"{key}={text}: a path inside a plugin needs its family; set it with --model")
        path = plugin.folder / text.removeprefix("plugin:")
    else:
        path = Path(text).expanduser()
    if not path.exists():
        raise ConfigError(f"{key}={text} does not exist")
    return path


def output_folder(settings: common.OutputConfig, needed: Mapping[str, Path]) -> Path:
    """The output folder, which must be empty unless a run is resumed or overwritten.

    Args:
        settings: The section ``output``.
        needed: Paths that the run reads, by key.

    Raises:
        ConfigError: It is not empty, is a file, or has a needed path in it that would be deleted.
        FileError: It cannot be written.
    """
    parse_bytes(settings.max_shard_bytes, "output.max_shard_bytes=")
    if settings.async_save and not STAGING.is_dir():
        raise ConfigError(f"output.async_save needs {STAGING}, a folder in memory, which this system does not have")
    folder = Path(settings.dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output.dir={settings.dir} is a file; set a folder")
    for key, path in needed.items():
        if settings.overwrite and folder.resolve() in path.resolve().parents:
            raise ConfigError(
                f"{key}={path} is in output.dir={folder}, which would be overwritten; choose another folder"
            )
    filled = folder.is_dir() and any(folder.iterdir())
    if filled and not (settings.resume or settings.overwrite):
        raise ConfigError(
            f"the output folder {folder} is not empty; resume the run with --resume, replace it with "
            "--overwrite, or choose another folder"
        )
    if settings.resume and not filled:
        warnings.warn(f"nothing to resume in {folder}; the run starts from the beginning", UserWarning, stacklevel=2)
    check_writable(folder)
    return folder
