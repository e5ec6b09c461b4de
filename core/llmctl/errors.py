"""Errors that a user can fix. The command line prints their message without a traceback and exits with 2.

Any other exception is a bug in llmctl and keeps its traceback.
"""

from types import ModuleType

DISTRIBUTION = "paddle-llmctl"
"""Name of core's distribution on package indexes, where ``llmctl`` is another project's."""

OPERATORS_DISTRIBUTION = "paddle-llmctl-ops"
"""The distribution of the compiled operators."""


class LlmctlError(Exception):
    """Wrong input; the message says what is wrong, where, what is allowed and what to do."""


class ConfigError(LlmctlError):
    """A configuration key, value or combination that cannot be used."""


class PluginError(LlmctlError):
    """A model family that is not installed, or whose plugin cannot be loaded."""


class UnsupportedError(LlmctlError):
    """A method that a family does not support, or a combination that llmctl cannot do; the message gives the reason."""


class DataError(LlmctlError):
    """Training data or prompts that cannot be used; the message lists every bad line."""


class FileError(LlmctlError):
    """A file or folder that is missing, damaged, or cannot be read or written."""


class TokenizerError(LlmctlError):
    """A tokenizer or chat template that is missing, unreadable or does not fit the model."""


class CheckpointError(LlmctlError):
    """A checkpoint that is incomplete, damaged, unsafe or does not fit the model."""


class MissingDependencyError(LlmctlError):
    """An optional package is not installed; the message says how to install it."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Imports an optional package.

    Args:
        module: Import name, e.g. ``"paddle"``.
        extra: The extra of our distribution that installs it, e.g. ``"cpu"``.
        purpose: What needs it, for the message.

    Raises:
        MissingDependencyError: The package is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise _missing(module, extra, purpose) from None


def require_installed(module: str, extra: str, purpose: str) -> None:
    """Checks that an optional package is installed, without importing it; arguments and errors as for ``require``."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise _missing(module, extra, purpose)


def _missing(module: str, extra: str, purpose: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"{purpose} needs {module}, which is not installed. Run: pip install '{DISTRIBUTION}[{extra}]'"
    )
