"""Messages of a conversation as files spell them: OpenAI's roles, ShareGPT's from and value, tools and tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmctl.data.formats.rows import kind
from llmctl.io.json_object import parse_json
from llmctl.tokenizers.conversation import THOUGHTS, Message

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "model": "assistant", "chatgpt": "assistant", "function_call": "assistant", "tool_call": "assistant", "tool": "tool",
    "tool_response": "tool", "observation": "tool", "function": "tool",
}  # fmt: skip
"""What a file calls a speaker -> role in chat templates."""
METADATA = (
    "id", "uuid", "source", "dataset", "category", "type", "task", "language", "lang", "split", "url", "license",
)  # fmt: skip
"""Keys with text that is about an example or message and no part of it."""
CALLS = ("function_call", "tool_call")
"""Speakers whose text is a call of a tool."""
MARKS = ("weight", "label", "train", "training", "loss", "loss_scale")
"""What files call the mark of a message that says whether it is trained on."""
_MORE = ("tool_calls", "tool_call_id", "name")


def text_of(key: str, value: Any) -> str:
    """A text.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be a string, not {kind(value)}")
    return value


def messages(key: str, value: Any) -> list[Message]:
    """The messages of a list, or of JSON text of one; OpenAI's and ShareGPT's spelling.

    Raises:
        ValueError: It is no list of messages.
    """
    value = from_json(key, value)
    if not isinstance(value, list):
        raise ValueError(f"{key!r} must be a list of messages, not {kind(value)}")
    if not value:
        raise ValueError(f"{key!r} is an empty list")
    found: list[Message] = []
    for index, item in enumerate(value):
        read = message(f"{key}[{index}]", item)
        before = value[index - 1] if index else None
        if _called(item) and _called(before) and found[-1].train == read.train:
            # Calls one after another are those of one answer.
            calls = [*(found[-1].more or {})["tool_calls"], *(read.more or {})["tool_calls"]]
            found[-1] = found[-1]._replace(more={**(found[-1].more or {}), "tool_calls": calls})
        else:
            found.append(read)
    return found


def message(where: str, item: Any) -> Message:
    """A message.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(item, dict):
        raise ValueError(f"{where!r} must be an object with role and content, not {kind(item)}")
    speaker = "from" if "from" in item and "role" not in item else "role"
    text = "value" if "value" in item and "content" not in item else "content"
    name = item.get(speaker)
    if not isinstance(name, str) or name not in ROLES:
        raise ValueError(f"{where}.{speaker} is {name!r}; known are {', '.join(ROLES)}")
    known = (speaker, text, "function_call", *MARKS, *THOUGHTS, *_MORE, *METADATA)
    odd = next((key for key, part in item.items() if key not in known and has_text(part)), None)
    if odd is not None:
        raise ValueError(f"{where} has the key {odd!r}, which would not be read; remove it")
    content = _content(f"{where}.{text}", item.get(text))
    more = {key: item[key] for key in _MORE if item.get(key) not in (None, "", [])}
    thoughts = next((item[key] for key in THOUGHTS if item.get(key) not in (None, "")), None)
    if thoughts is not None:
        more["reasoning_content"] = text_of(f"{where}.{next(key for key in THOUGHTS if item.get(key))}", thoughts)
    if name in CALLS:
        content, more = None, {**more, "tool_calls": _json(f"{where}.{text}", content)}
    elif item.get("function_call"):
        more["tool_calls"] = item["function_call"]
    if "tool_calls" in more:
        more["tool_calls"] = _calls(f"{where}.tool_calls", more["tool_calls"])
    if content is None and "tool_calls" not in more:
        raise ValueError(f"{where!r} has no {text!r}")
    marks = {key: item[key] for key in MARKS if item.get(key) is not None}
    for key, mark in marks.items():
        if mark not in (0, 1):
            raise ValueError(f"{where}.{key} is {mark!r}; it must be 0 or 1, whether the message is trained on")
    train = all(marks.values())
    return Message(ROLES[name], content, more or None, train)


def tools(value: Any) -> list[Mapping[str, Any]]:
    """Schemas of tools: a list, or JSON text of one; a bare function gets what OpenAI puts around it.

    Raises:
        ValueError: It is no list of objects.
    """
    value = from_json("tools", value)
    if value is None or isinstance(value, str) and not value.strip():
        return []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ValueError("'tools' must be a list of function schemas")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in value]


def labelled(found: Sequence[Message], label: Any) -> list[Message]:
    """The messages, of whose answers those with 0 in ``label`` are not trained on.

    Raises:
        ValueError: ``label`` has not a number for each answer.
    """
    answers, label = sum(item.is_answer for item in found), from_json("label", label)
    marks = label if isinstance(label, list) else [label] * answers
    if len(marks) != answers or not all(mark in (0, 1) for mark in marks):
        raise ValueError(f"'label' must have 0 or 1 for each of the {answers} answers")
    left = iter(marks)
    return [item._replace(train=item.train and bool(next(left))) if item.is_answer else item for item in found]


def from_json(key: str, value: Any) -> Any:
    """A value, or that of its JSON text: cells of tables hold lists as text.

    Raises:
        ValueError: Text begins as a list and is no JSON.
    """
    begins = isinstance(value, str) and value.strip()[:1]
    return _json(key, value) if begins and begins in "[01" else value


def has_text(value: Any) -> bool:
    """Whether a JSON value has text in it."""
    if isinstance(value, dict):
        return any(map(has_text, value.values()))
    return any(map(has_text, value)) if isinstance(value, list) else isinstance(value, str) and bool(value.strip())


def _called(item: Any) -> bool:
    """Whether an entry is a call of a tool that stands as a message of its own."""
    return isinstance(item, dict) and item.get("role", item.get("from")) in CALLS


def _content(where: str, value: Any) -> str | None:
    """A text; parts of the type text are joined."""
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"{where} has a part that is no text; only texts can be trained on")
        return "".join(map(str, parts))
    return None if value is None else text_of(where, value)


def _calls(where: str, value: Any) -> list[dict[str, Any]]:
    """Tool calls as templates get them: arguments as an object, where OpenAI has its JSON text."""
    found = []
    for call in value if isinstance(value, list) else [value]:
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise ValueError(f"{where} must have a name and arguments for each call")
        arguments = inner.get("arguments", {})
        arguments = _json(f"{where}.arguments", arguments) if isinstance(arguments, str) else arguments
        function = {"name": inner["name"], "arguments": arguments}
        outer = {"id": call["id"]} if "id" in call else {}
        found.append({**outer, "type": "function", "function": function})
    return found


def _json(where: str, text: Any) -> Any:
    try:
        return parse_json(text)
    except (TypeError, ValueError):
        raise ValueError(f"{where} must be JSON text") from None
