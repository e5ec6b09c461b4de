"""What the formats share: conversations of messages and of Alpaca's keys, system prompts, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmctl.data.formats.messages import from_json, labelled, message, messages, text_of, tools
from llmctl.data.formats.rows import system_text
from llmctl.tokenizers.conversation import RESERVED, Conversation, Message, messages_of

Row = Mapping[str, Any]
"""The object of a line, by its keys in the format."""

VARIABLES = "chat_template_kwargs"
"""Key of values for names that the chat template reads, such as ``enable_thinking``."""

ANY = ("tools", "system", VARIABLES)
"""Keys that all formats of conversations have."""


def system_of(row: Row) -> str | None:
    """The system prompt of ``context`` or of ``system``.

    Raises:
        ValueError: It is no text, or there are two.
    """
    inner = system_text(row.get("context"))
    outer = text_of("system", row["system"]) if row.get("system") is not None else None
    if inner and outer and inner != outer:
        raise ValueError("'system' and 'context.system' differ; keep one")
    return inner if inner is not None else outer or None


def talk(row: Row, found: Sequence[Message]) -> Conversation:
    """The conversation of messages, with system prompt, tools and labels of the row."""
    system = system_of(row)
    if system and found[0].role == "system" and found[0].content != system:
        raise ValueError("'system' and the first message are two different system prompts; keep one")
    if system and found[0].role != "system":
        found = [Message("system", system), *found]
    if row.get("label") not in (None, ""):
        found = labelled(found, row["label"])
    return Conversation(messages=found, tools=tools(row.get("tools")), variables=_variables(row))


def _variables(row: Row) -> dict[str, Any]:
    """Values for the chat template, as TRL has them in a row."""
    given = from_json(VARIABLES, row.get(VARIABLES)) or {}
    if not isinstance(given, dict):
        raise ValueError(f"{VARIABLES!r} must be an object of names and values")
    taken = next((name for name in given if name in RESERVED), None)
    if taken is not None:
        raise ValueError(f"{VARIABLES}.{taken} cannot be set; the conversation gives it")
    return {name: value for name, value in given.items() if value is not None}


def alpaca_prompt(row: Row) -> list[Message]:
    """Messages of Alpaca's keys without the answer: history, and instruction with input on a line of its own."""
    history = from_json("history", row.get("history")) or []
    pairs = isinstance(history, list) and all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in history
    )
    if not pairs:
        raise ValueError("'history' must be a list of [question, answer]")
    asked = [text_of(key, row[key]) for key in ("instruction", "input") if row.get(key)]
    return list(messages_of([*map(tuple, history), ("\n".join(asked), None)]))


def texts_or_messages(key: str, value: Any) -> list[Message]:
    """A user's text, or messages."""
    return [Message("user", value)] if isinstance(value, str) else messages(key, value)


def answer(key: str, value: Any) -> Message:
    """An answer, as text or as one message."""
    found = value[0] if isinstance(value, list) and len(value) == 1 else value
    item = message(key, found) if isinstance(found, dict) else Message("assistant", text_of(key, found))
    if not item.is_answer:
        raise ValueError(f"{key!r} is of the role {item.role}; it must be an assistant's answer")
    if not item.text.strip():
        raise ValueError(f"{key!r} is empty")
    return item
