"""Formats of prompts: those of examples, with or without an answer; a last answer is left out. Texts for pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.data.formats.conversations import ANY, Row, alpaca_prompt, talk, texts_or_messages
from llmctl.data.formats.format import Format
from llmctl.data.formats.rows import kind
from llmctl.tokenizers.conversation import Conversation, Message, messages_of

ANSWERS = (
    "tgt", "output", "completion", "chosen", "rejected", "chosen_response", "rejected_response", "response", "answer",
    "label", "sort", "adapter",
)  # fmt: skip
"""Keys that hold answers or what is about them, and the adapter of a line."""


def _turns(row: Row) -> Conversation:
    src, tgt = (_texts(key, row.get(key)) for key in ("src", "tgt"))
    if not src:
        raise ValueError("'src' is an empty list")
    if len(tgt) < len(src) - 1:
        raise ValueError(f"'src' has {len(src)} turns, so 'tgt' must have the first {len(src) - 1} answers")
    return talk({**row, "label": None}, messages_of([*zip(src[:-1], tgt, strict=False), (src[-1], None)]))


def _texts(key: str, value: Any) -> list[str]:
    texts = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key!r} must be text or a list of texts, not {kind(value)}")
    return texts


def _asked(row: Row, key: str, found: Sequence[Message]) -> Conversation:
    if found[-1].is_answer:
        found = found[:-1]
    if not found:
        raise ValueError(f"{key!r} has no message to answer")
    return talk({**row, "label": None}, found)


def _messages(name: str, key: str) -> Format[Conversation]:
    return Format(name, (key,), (*ANY, *ANSWERS), lambda row: _asked(row, key, texts_or_messages(key, row[key])))


PROMPTS: Sequence[Format[Conversation]] = (
    Format("llmctl", ("src",), ("context", *ANY, *ANSWERS), _turns),
    _messages("ShareGPT", "conversations"),
    _messages("messages", "messages"),
    Format("Alpaca", ("instruction",), ("input", "history", *ANY, *ANSWERS),
           lambda row: _asked(row, "instruction", alpaca_prompt(row))),
    _messages("prompt-completion", "prompt"),
)  # fmt: skip
PROMPT_KEYS = ("conversations", "messages", "instruction", "input", "prompt")
"""Keys of prompts in all formats but our own."""

TEXT: Sequence[Format[str]] = (Format("text", ("text",), (), lambda row: str(row["text"])),)
