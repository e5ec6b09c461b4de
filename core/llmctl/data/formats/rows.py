"""A line of data: its JSON object, and checks of its values."""

from __future__ import annotations

import json
from typing import Any

from llmctl.io.json_object import parse_json


def parse_object(text: str | None) -> dict[str, Any]:
    """Parses the JSON object in a line.

    Raises:
        ValueError: The line is not a JSON object; the message is the reason.
    """
    if text is None:
        raise ValueError("not valid UTF-8")
    try:
        row = parse_json(text, unique=True)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {kind(row)}")
    return row


def turns(key: str, value: Any) -> tuple[str, ...]:
    """The texts of a key, a string or a list of strings; answers must not be empty.

    Raises:
        ValueError: A text is not a string, or an answer is empty.
    """
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ValueError(f"{key!r} is an empty list")
    for turn in texts:
        if not isinstance(turn, str):
            raise ValueError(f"{key!r} must be a string or a list of strings, not {kind(turn)}")
        if key != "src" and not turn.strip():
            raise ValueError(f"{key!r} is empty")
    return tuple(texts)


def system_text(context: Any) -> str | None:
    """The system prompt in the ``context`` of a row.

    Raises:
        ValueError: The context is not valid.
    """
    if context is None:
        return None
    if not isinstance(context, dict):
        raise ValueError(f"'context' must be an object, not {kind(context)}")
    system = context.get("system")
    if system is not None and not isinstance(system, str):
        raise ValueError(f"'context.system' must be a string, not {kind(system)}")
    unknown = sorted(set(context) - {"system"})
    if unknown:
        raise ValueError(f"'context' allows only the key 'system', not {unknown[0]!r}")
    return system


def kind(value: Any) -> str:
    """The JSON type of a value, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
