"""Checks of the files and folders that a configuration names."""

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
"""A folder in memory, where ``output.async_save`` writes checkpoints first."""


def find_path(text: str, key: str, plugin: plugins.Plugin | None) -> Path:
    """The file or folder that a configuration names; ``plugin:`` stands for the family's package.

    Args:
        text: The value.
        key: Its key, for messages.
        plugin: The family, if it is known.

    Raises:
        ConfigError: There is none.
    """
    if text.startswith("plugin:"):
        if plugin is None:
            raise ConfigError(f"{key}={text}: a path inside a plugin needs the family; name it with --model")
        path = plugin.folder / text.removeprefix("plugin:")
    else:
        path = Path(text).expanduser()
    if not path.exists():
        raise ConfigError(f"{key}={text}: there is no such file or folder")
    return path


def output_folder(settings: common.OutputConfig, needed: Mapping[str, Path]) -> Path:
    """The folder to write to, which is empty unless a run is continued or replaced.

    Args:
        settings: What is to be written there, and how.
        needed: What the run reads, by the key that names it.

    Raises:
        ConfigError: It holds something, is a file, or would be deleted with what is needed in it.
        CheckpointError: Nothing can be written there.
    """
    parse_bytes(settings.max_shard_bytes, "output.max_shard_bytes=")
    if settings.async_save and not STAGING.is_dir():
        raise ConfigError(f"output.async_save needs {STAGING}, a folder in memory, which this system does not have")
    folder = Path(settings.dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output.dir={settings.dir} is a file; name a folder")
    for key, path in needed.items():
        if settings.overwrite and folder.resolve() in path.resolve().parents:
            raise ConfigError(f"{key}={path} lies in output.dir={folder}, which would be overwritten; choose another")
    filled = folder.is_dir() and any(folder.iterdir())
    if filled and not (settings.resume or settings.overwrite):
        raise ConfigError(
            f"the output folder {folder} is not empty; continue it with --resume, replace it with --overwrite, "
            "or choose another"
        )
    if settings.resume and not filled:
        warnings.warn(f"nothing to resume in {folder}; the run starts from the beginning", UserWarning, stacklevel=2)
    check_writable(folder)
    return folder
