"""The messages of a request's body, as chat templates get them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmctl.io.json_object import parse_json
from llmctl.serve.problems import Problem, shown
from llmctl.tokenizers.conversation import THOUGHTS, Message

ROLES = ("system", "developer", "user", "assistant", "tool")
MESSAGES = 4096
"""How many messages a body may have."""


def messages_of(messages: Sequence[Any]) -> list[Message]:
    """Messages as OpenAI's clients write them.

    Args:
        messages: Objects with ``role``, ``content`` (a text, or parts of the type text) and maybe ``tool_calls``.

    Raises:
        Problem: One is not as it should be, or there are none or too many.
    """
    if not 1 <= len(messages) <= MESSAGES:
        raise Problem(f"messages has {len(messages)} entries; allowed are 1 to {MESSAGES}", param="messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def continued(values: Mapping[str, Any], messages: Sequence[Message]) -> bool:
    """Whether the last message is an assistant's text that the answer continues.

    Args:
        values: The body, of which ``continue_final_message`` and ``add_generation_prompt`` are read.
        messages: Its messages.

    Raises:
        Problem: It should be, and is none.
    """
    more = bool(values.get("continue_final_message"))
    if values.get("add_generation_prompt", not more) is more:
        raise Problem(
            "add_generation_prompt must be false with continue_final_message, and true without",
            param="add_generation_prompt",
        )
    last = messages[-1]
    if more and (last.role != "assistant" or not last.content or "tool_calls" in (last.more or {})):
        raise Problem("continue_final_message needs an assistant's text as the last message", param="messages")
    return more


def _message(message: Any, where: str) -> Message:
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ROLES:
        raise Problem(f"{where}: role is {shown(role)}; allowed are {', '.join(ROLES)}", param="messages")
    more = {key: message[key] for key in ("name", "tool_call_id", *THOUGHTS) if message.get(key) is not None}
    for key, value in more.items():
        if not isinstance(value, str):
            raise Problem(f"{where}: {key} must be text", param="messages")
    thoughts = [text for key in THOUGHTS if (text := more.pop(key, None))]
    if thoughts:
        more["reasoning_content"] = thoughts[0]
    if message.get("tool_calls"):
        more["tool_calls"] = _calls(message["tool_calls"], where)
    content = _content(message.get("content"), where)
    if content is None and "tool_calls" not in more:
        raise Problem(f"{where}: content is missing", param="messages")
    return Message("system" if role == "developer" else role, content, more or None)


def _content(content: Any, where: str) -> str | None:
    """Text, or the texts of several parts one after another."""
    if content is None or isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise Problem(
                f"{where}: content has a part of type {shown(kind)}; the model reads text only", param="messages"
            )
        texts.append(part["text"])
    return "".join(texts)


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls, whose arguments templates get as objects."""
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Problem(f"{where}: a tool call must have a function with a name", param="messages")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = parse_json(arguments or "{}", bounded=True)
            except ValueError:
                raise Problem(f"{where}: the arguments of a tool call are not valid JSON", param="messages") from None
        found.append({**call, "function": {**function, "arguments": arguments}})
    return found
