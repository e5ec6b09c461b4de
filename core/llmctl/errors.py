"""Errors that a user can mend. The command line prints them without a traceback and exits with 2.

Everything else that escapes is a defect of llmctl and keeps its traceback.
"""

from types import ModuleType


class LlmctlError(Exception):
    """A mistake in what the user gave; the message says what, where, what is allowed and what to do."""


class ConfigError(LlmctlError):
    """A configuration key, value or combination that cannot be used."""


class PluginError(LlmctlError):
    """A family that is not installed, or whose distribution cannot be loaded."""


class UnsupportedError(LlmctlError):
    """A method that a family's card declares unsupported, or a combination that core cannot do; with its reason."""


class DataError(LlmctlError):
    """Training or prompt data that cannot be read; the message lists every bad line."""


class TokenizerError(LlmctlError):
    """A tokenizer or chat template that is missing, unreadable or does not fit the model."""


class CheckpointError(LlmctlError):
    """A checkpoint that is incomplete, damaged, unsafe or does not fit the model."""


class MissingDependencyError(LlmctlError):
    """A package of an extra is absent; the message is the one line that installs it."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """The imported module.

    Args:
        module: Import name, e.g. ``"paddle"``.
        extra: The extra of the distribution ``llmctl`` that brings it, e.g. ``"cpu"``.
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
        raise MissingDependencyError(
            f"{purpose} needs {module}, which is not installed. Run: pip install 'llmctl[{extra}]'"
        ) from None
