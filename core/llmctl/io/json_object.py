"""The small JSON files beside an adapter's tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmctl.errors import CheckpointError, TokenizerError

Form = tuple[Callable[[Any], bool], str]
"""Whether a value has a form, and the form in words."""


def read(path: Path) -> Any:
    """The content of a file; whether it is an object is the caller's question.

    Raises:
        CheckpointError: It cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object, readable."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check(path: Path, content: Mapping[str, Any], forms: Mapping[str, Form]) -> None:
    """Passes when every value that is there has its form.

    Args:
        path: The file, for messages.
        content: What it holds.
        forms: By key.

    Raises:
        CheckpointError: Lists the values that have not, and what they must be.
    """
    odd = [
        f"{key}={content[key]!r} must be {words}" for key, (fits, words) in forms.items()
        if key in content and not fits(content[key])
    ]  # fmt: skip
    if odd:
        raise CheckpointError(f"{path}: {'; '.join(odd)}")


def is_count(value: Any) -> bool:
    """Whether a value is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file.

    Raises:
        TokenizerError: The file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object as readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
