"""Text files that come with a model."""

from __future__ import annotations

from pathlib import Path

from llmctl.errors import FileError


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        FileError: It does not exist, cannot be read, or is not valid UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileError(f"{path} does not exist") from None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not valid UTF-8: {error}") from None
