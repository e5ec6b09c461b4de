"""Formats of preferences: a conversation with a chosen and a rejected answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.data.formats.conversations import ANY, Row, alpaca_prompt, answer, talk, texts_or_messages
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


def _rejected(row: Row) -> Choice:
    """ms-swift's pairs: a conversation with the chosen answer, and the rejected one, or the conversation with it."""
    whole = messages("messages", row["messages"])
    rejected = row.get("rejected_response")
    if rejected is None:
        other = messages("rejected_messages", row["rejected_messages"])
        if other[:-1] != whole[:-1]:
            raise ValueError("'messages' and 'rejected_messages' differ before their last message")
        worse = other[-1]
    else:
        worse = answer("rejected_response", rejected)
    if not whole[-1].is_answer or not worse.is_answer:
        raise ValueError("the last message must be an assistant's answer")
    if not whole[:-1]:
        raise ValueError("'messages' has no message to answer")
    return _different(talk(row, whole[:-1]), whole[-1], worse, "the two answers are the same")


DPO: Sequence[Format[Choice]] = (
    Format("llmctl", ("src", "tgt", "response", "sort"), ("context", *ANY), _src_response),
    Format("ShareGPT", ("conversations", "chosen", "rejected"), ANY,
           lambda row: _choice(row, messages("conversations", row["conversations"]), "chosen", "rejected")),
    Format("PaddleFormers", ("messages", "chosen_response", "rejected_response"), ANY,
           lambda row: _choice(row, messages("messages", row["messages"]), "chosen_response", "rejected_response")),
    Format("ms-swift", ("messages", "rejected_response"), ANY, _rejected),
    Format("ms-swift-messages", ("messages", "rejected_messages"), ANY, _rejected),
    Format("Alpaca", ("instruction", "chosen", "rejected"), ("input", "history", *ANY),
           lambda row: _choice(row, alpaca_prompt(row), "chosen", "rejected")),
    Format("prompt-chosen-rejected", ("chosen", "rejected"), ("prompt", *ANY), _chosen),
)  # fmt: skip
