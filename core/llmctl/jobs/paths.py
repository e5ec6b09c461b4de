"""Checks of the paths in a configuration."""

from __future__ import annotations

import contextlib
import glob
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from llmctl import plugins
from llmctl.checkpoint.locate import locate
from llmctl.config import common
from llmctl.errors import ConfigError
from llmctl.io import lock
from llmctl.io.atomic import check_writable, explain_os_errors, temporary_prefix
from llmctl.io.sizes import parse_bytes

STAGING = Path("/dev/shm")
"""A folder in memory, into which ``output.async_save`` writes checkpoints first."""
LOCK = ".lock"
"""The file in an output folder that says which process writes there; it exists during a run."""
CONFIG = "config.yaml"
"""The file in an output folder that has the configuration."""
LOGS = "logs"
"""The folder in an output folder that has what ranks other than 0 print."""


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
        several = "; several are a list, [a, b]" if all(Path(part.strip()).exists() for part in text.split(",")) else ""
        raise ConfigError(f"{key}={text} does not exist{_here(path)}{several}")
    return path


def find_model_folder(
    text: str, key: str, plugin: plugins.Plugin | None, revision: str = "", weights: bool = True
) -> Path:
    """The folder of a model, downloaded if the value is a name on a hub; else as ``find_path``.

    Args:
        text: The value.
        key: Its key, for messages.
        plugin: The family, if it is known.
        revision: Branch, tag or commit of a name on a hub.
        weights: False downloads configuration and tokenizer only.

    Raises:
        LlmctlError: It does not exist, or cannot be downloaded.
    """
    if text.startswith("plugin:"):
        return find_path(text, key, plugin)
    folder = locate(text, revision, weights)
    if not folder.exists():
        raise ConfigError(
            f"{key}={text} does not exist{_here(folder)}; a model on the Hugging Face Hub is named OWNER/NAME or hf:NAME"
        )
    return folder


def find_paths(text: str, key: str, plugin: plugins.Plugin | None) -> list[Path]:
    """The files of a pattern such as ``data/*.jsonl``, in order of names, or the file or folder of a value.

    Args:
        text: The value.
        key: Its key, for messages.
        plugin: The family, if it is known.

    Raises:
        ConfigError: There is none.
    """
    pattern = Path(text).expanduser()
    if not any(mark in text for mark in "*?[") or pattern.exists():
        return [find_path(text, key, plugin)]
    found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))
    if not found:
        raise ConfigError(f"{key}={text} matches no file{_here(pattern)}")
    return found


def _here(path: Path) -> str:
    """Where a relative path was looked for: in the current folder, not in that of the configuration."""
    return "" if path.is_absolute() else f" in the current folder, {os.path.realpath(os.curdir)}"


def template_of(choice: str, plugin: plugins.Plugin) -> str:
    """``data.chat_template`` for ``tokenizers.load``; raises as ``find_path``.

    Args:
        choice: The value.
        plugin: The family.
    """
    if choice in ("auto", "family", "none"):
        return choice
    return str(find_path(choice, "data.chat_template", plugin))


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
    _check_free(folder, settings)
    if settings.resume and not _filled(folder):
        warnings.warn(f"nothing to resume in {folder}; the run starts from the beginning", UserWarning, stacklevel=2)
    check_writable(folder)
    return folder


def settings_of_restart(folder: Path, settings: common.OutputConfig) -> Callable[[], list[str]]:
    """Called before a run, and the result after it failed: options that make the next start continue what it has written.

    None if it was to overwrite an earlier run and had not yet begun to write: there would be only that one to continue.

    Args:
        folder: The output folder.
        settings: The section ``output``.
    """
    before = _mark(folder)

    def options() -> list[str]:
        begun = not settings.overwrite or _mark(folder) not in (before, None)
        return ["--set", "output.resume=true", "--set", "output.overwrite=false"] if begun else []

    return options


def _mark(folder: Path) -> tuple[int, int] | None:
    """Identifies the file that a run writes first, once an earlier one is deleted; None = it does not exist."""
    with contextlib.suppress(OSError):
        found = (folder / CONFIG).stat()
        return found.st_ino, found.st_mtime_ns
    return None


@contextlib.contextmanager
def hold_output(folder: Path, settings: common.OutputConfig) -> Iterator[None]:
    """Locks the output folder, creating it, so that no other run writes there during the block.

    Args:
        folder: The output folder.
        settings: The section ``output``.

    Raises:
        ConfigError: Another run writes there, or has written there since the configuration was checked.
        FileError: It cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with explain_os_errors(folder):
            for missing in _missing(folder):
                missing.mkdir(exist_ok=True)
                stack.callback(_remove_if_empty, missing)
            try:
                stack.enter_context(lock.hold(folder / LOCK))
            except lock.Busy as busy:
                raise ConfigError(
                    f"the output folder {folder} is in use by {busy}; wait until that run ends, stop it, or choose another "
                    "output.dir"
                ) from None
        _check_free(folder, settings)
        yield


def _check_free(folder: Path, settings: common.OutputConfig) -> None:
    if _filled(folder) and not (settings.resume or settings.overwrite):
        raise ConfigError(
            f"the output folder {folder} is not empty; resume the run with --resume, replace it with "
            "--overwrite, or choose another folder"
        )


def _filled(folder: Path) -> bool:
    # Another rank may be trying whether the folder can be written.
    ours = temporary_prefix(folder)
    return folder.is_dir() and any(
        path.name not in (LOCK, LOGS) and not path.name.startswith(ours) for path in folder.iterdir()
    )


def _missing(folder: Path) -> list[Path]:
    """The folder and its parents that do not exist, outermost first."""
    return [path for path in reversed((folder, *folder.parents)) if not path.exists()]


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
