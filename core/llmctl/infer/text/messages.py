"""Conversations as OpenAI writes them: a list of messages with ``role`` and ``content``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmctl.errors import DataError
from llmctl.tokenizers.conversation import Conversation

Message = Mapping[str, Any]


def conversation_of(messages: Sequence[Message], where: str = "messages") -> Conversation:
    """The conversation, whose next answer is to be generated.

    Args:
        messages: Maybe one of the role ``system``, then ``user`` and ``assistant`` by turns, ``user`` at the end; contents are text.
        where: Name of the messages in errors.

    Raises:
        DataError: They are not.
    """
    roles = [_role(message, f"{where}[{index}]") for index, message in enumerate(messages)]
    texts = [_content(message, f"{where}[{index}]") for index, message in enumerate(messages)]
    system = texts.pop(0) if roles[:1] == ["system"] else None
    turns = roles[system is not None :]
    if not turns or turns != [("user", "assistant")[index % 2] for index in range(len(turns))] or turns[-1] != "user":
        raise DataError(
            f"{where} has the roles {', '.join(roles) or 'of no message'}; allowed are system (once, first), then user and "
            "assistant by turns, ending with user"
        )
    answers = [*texts[1::2], None]
    return Conversation(tuple(zip(texts[::2], answers, strict=True)), system)


def _role(message: Message, where: str) -> str:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ("system", "user", "assistant"):
        raise DataError(f"{where}: role is {role!r}; allowed are system, user and assistant")
    return str(role)


def _content(message: Message, where: str) -> str:
    content = message.get("content")
    if not isinstance(content, str):
        raise DataError(f"{where}: content is {type(content).__name__}; it must be text")
    return content
