"""Formats of conversations to train on."""

from __future__ import annotations

from collections.abc import Sequence

from llmctl.data.formats.conversations import ANY, Row, alpaca_prompt, answer, talk, texts_or_messages
from llmctl.data.formats.format import Format
from llmctl.data.formats.messages import messages
from llmctl.data.formats.rows import turns
from llmctl.tokenizers.conversation import Conversation, Message, messages_of


def _answered(row: Row, found: Sequence[Message]) -> Conversation:
    """A conversation to train on: it ends with an answer."""
    chat = talk(row, found)
    if not chat.messages[-1].is_answer:
        raise ValueError(f"the last message is of the role {chat.messages[-1].role}; it must be an assistant's answer")
    empty = next((item for item in chat.messages if item.is_answer and not item.text.strip()), None)
    if empty is not None:
        raise ValueError("an answer is empty")
    if not any(item.is_answer and item.train for item in chat.messages):
        raise ValueError("no answer is trained on; label or weight of all is 0")
    return chat


def _src_tgt(row: Row) -> Conversation:
    src, tgt = (turns(key, row[key]) for key in ("src", "tgt"))
    if len(src) != len(tgt):
        raise ValueError(f"'src' has {len(src)} turns, 'tgt' has {len(tgt)}")
    return _answered(row, messages_of(zip(src, tgt, strict=True)))


def _alpaca(row: Row) -> Conversation:
    return _answered(row, [*alpaca_prompt(row), answer("output", row["output"])])


def _completion(row: Row) -> Conversation:
    value = row["completion"]
    answers = [answer("completion", value)] if isinstance(value, str) else messages("completion", value)
    # Loss is on the completion only, as in TRL.
    asked = [item._replace(train=not item.is_answer) for item in texts_or_messages("prompt", row["prompt"])]
    return _answered(row, [*asked, *answers])


_ANY = (*ANY, "label")
SFT: Sequence[Format[Conversation]] = (
    Format("llmctl", ("src", "tgt"), ("context", *_ANY), _src_tgt),
    Format("ShareGPT", ("conversations",), _ANY,
           lambda row: _answered(row, messages("conversations", row["conversations"]))),
    Format("messages", ("messages",), _ANY,
           lambda row: _answered(row, messages("messages", row["messages"]))),
    Format("Alpaca", ("instruction", "output"), ("input", "history", *_ANY), _alpaca),
    Format("prompt-completion", ("prompt", "completion"), _ANY, _completion),
)  # fmt: skip
