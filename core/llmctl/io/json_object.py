"""JSON: values from text and back, and files that hold an object."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmctl.errors import FileError

_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")
_HALF_PAIR = re.compile("[\ud800-\udfff]")

NO_LIMIT = (int(1e30), 10**30, int(1e20))
"""Numbers of more than 64 bits that transformers and people write as ``model_max_length`` of a tokenizer without a limit."""


def parse_json(text: str | bytes, unique: bool = False, bounded: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        text: The text, or its bytes in UTF-8.
        unique: Whether a key that an object has twice is an error; else the last one counts.
        bounded: Whether a whole number of more than 64 bits is an error, unless it is one of ``NO_LIMIT``.

    Raises:
        ValueError: It is not valid JSON, is nested too deeply, or has half of a surrogate pair, which no file can hold; a
            ``JSONDecodeError`` where its line is known.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        value = json.loads(text, object_pairs_hook=_unique if unique else None, parse_int=_integer if bounded else None)
        half = _HALF_PAIR.search(json.dumps(value, ensure_ascii=False)) if _ESCAPED.search(text) else None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if half:
        raise ValueError(f"\\u{ord(half[0]):04x} is half of a surrogate pair, not a character")
    return value


def as_json(content: Any) -> bytes:
    """A value as compact JSON in UTF-8."""
    return _COMPACT.encode(content).encode("utf-8", "replace")


def read_json(path: Path, required: bool = False) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Args:
        path: The file.
        required: Whether it must exist; else a missing file reads as an empty object.

    Raises:
        FileError: The file is required and missing, cannot be read, is not a JSON object, or holds a whole number of more than
            64 bits that is none of ``NO_LIMIT``.
    """
    if not required and not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"), bounded=True)
    except FileNotFoundError:
        raise FileError(f"{path} does not exist") from None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise FileError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise FileError(f"{path} must be a JSON object, not a {type(content).__name__}")
    return content


def _integer(text: str) -> int:
    """A whole number of at most 64 bits, or one that stands for no limit: files of models and runs need no others."""
    number = int(text) if len(text) <= 40 else None
    if number is None or not (-(2**63) <= number < 2**64 or number in NO_LIMIT):
        raise ValueError(f"{text[:20]}... does not fit into 64 bits")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is given twice")
        found[key] = value
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
