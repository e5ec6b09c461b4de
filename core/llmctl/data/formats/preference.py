"""Formats of preferences: a conversation with a chosen and a rejected answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.data.formats.conversations import Row, alpaca_prompt, answer, talk, texts_or_messages
from llmctl.data.formats.format import Format
from llmctl.data.formats.messages import messages
from llmctl.data.formats.rows import turns
from llmctl.tokenizers.conversation import Conversation, Message, messages_of

Choice = tuple[Conversation, Message, Message]
"""A conversation to be answered, the chosen answer, and the rejected one."""


def _choice(row: Row, found: Sequence[Message], chosen: str, rejected: str) -> Choice:
    """The choice between the answers of two keys."""
    better, other = (answer(key, row[key]) for key in (chosen, rejected))
    return _different(talk(row, found), better, other, f"{chosen!r} and {rejected!r} are the same")


def _different(prompt: Conversation, better: Message, other: Message, reason: str) -> Choice:
    if better.text.strip() == other.text.strip():
        raise ValueError(reason)
    if prompt.messages[-1].is_answer:
        raise ValueError("the prompt ends with an answer; its last message must be a user's")
    return prompt, better, other


def _src_response(row: Row) -> Choice:
    src = turns("src", row["src"])
    tgt = () if row["tgt"] == [] else turns("tgt", row["tgt"])
    if len(src) != len(tgt) + 1:
        raise ValueError(f"'src' has {len(src)} turns, 'tgt' has {len(tgt)}; 'src' must have one more")
    response = turns("response", row["response"])
    if len(response) != 2:
        raise ValueError(f"'response' must have two answers, got {len(response)}")
    prompt = talk(row, messages_of(zip(src, (*tgt, None), strict=True)))
    better, other = (Message("assistant", response[index]) for index in _order(row["sort"]))
    return _different(prompt, better, other, "the two answers of 'response' are the same")


def _order(sort: Any) -> tuple[int, int]:
    """Index of the chosen and of the rejected answer."""
    numbers = isinstance(sort, list) and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in sort)
    if not numbers or len(sort) != 2:
        raise ValueError("'sort' must be a list of two numbers")
    if sort[0] > sort[1]:
        return 0, 1
    if sort[1] > sort[0]:
        return 1, 0
    raise ValueError("the two numbers of 'sort' are equal, so neither answer is better")


def _chosen(row: Row) -> Choice:
    """TRL's pairs: a prompt and two answers, or two conversations that differ in the last message."""
    asked = texts_or_messages("prompt", row["prompt"]) if "prompt" in row else []
    if not (isinstance(row["chosen"], list) and len(row["chosen"]) > 1):
        if not asked:
            raise ValueError("missing key 'prompt'")
        return _choice(row, asked, "chosen", "rejected")
    better, other = (messages(key, row[key]) for key in ("chosen", "rejected"))
    if better[:-1] != other[:-1]:
        raise ValueError("'chosen' and 'rejected' differ before their last message")
    if asked and better[: len(asked)] != asked and better[:-1][-1:] != asked[-1:]:
        raise ValueError("'chosen' does not begin with 'prompt'")
    last = {"chosen": row["chosen"][-1], "rejected": row["rejected"][-1]}
    return _choice({**row, **last}, better[:-1], "chosen", "rejected")


DPO: Sequence[Format[Choice]] = (
    Format("llmctl", ("src", "tgt", "response", "sort"), ("context", "tools", "system"), _src_response),
    Format("ShareGPT", ("conversations", "chosen", "rejected"), ("tools", "system"),
           lambda row: _choice(row, messages("conversations", row["conversations"]), "chosen", "rejected")),
    Format("PaddleFormers", ("messages", "chosen_response", "rejected_response"), ("tools", "system"),
           lambda row: _choice(row, messages("messages", row["messages"]), "chosen_response", "rejected_response")),
    Format("Alpaca", ("instruction", "chosen", "rejected"), ("input", "history", "tools", "system"),
           lambda row: _choice(row, alpaca_prompt(row), "chosen", "rejected")),
    Format("prompt-chosen-rejected", ("chosen", "rejected"), ("prompt", "tools", "system"), _chosen),
)  # fmt: skip
