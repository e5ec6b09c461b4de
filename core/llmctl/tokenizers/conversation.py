"""Conversations: the messages of users, assistants and tools, as chat templates get them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

Turn = tuple[str, str | None]
"""What a user says, and the answer; None where it is to be generated."""

Tools = Sequence[Mapping[str, Any]]
"""Schemas of the functions that a model may call."""


THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""What programs and files call the thoughts before an answer; the first is the name inside."""

RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "special_tokens")
"""Names of a template that are no variables."""


class Message(NamedTuple):
    """A message of a conversation.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        content: Its text; None where it has none, such as with tool calls.
        more: Further keys that templates read: ``tool_calls``, ``tool_call_id``, ``name``, ``reasoning_content``.
        train: Whether it is trained on, if it is an assistant's.
    """

    role: str
    content: str | None
    more: Mapping[str, Any] | None = None
    train: bool = True

    @property
    def is_answer(self) -> bool:
        """Whether an assistant wrote it."""
        return self.role == "assistant"

    def as_dict(self) -> dict[str, Any]:
        """The message as templates get it; some read thoughts by another name."""
        more = dict(self.more or {})
        if "reasoning_content" in more:
            more = {"thinking": more["reasoning_content"], **more}
        return {"role": self.role, "content": self.content, **more}

    @property
    def text(self) -> str:
        """What it says: its text, else its tool calls as JSON."""
        calls = (self.more or {}).get("tool_calls")
        return self.content or (json.dumps(calls, ensure_ascii=False) if calls else "")

    def map(self, change: Callable[[str], str]) -> Message:
        """The message with every text changed, that of tool calls among it."""
        content = None if self.content is None else change(self.content)
        return self._replace(content=content, more=_map(self.more, change) if self.more else None)


@dataclass(frozen=True, init=False)
class Conversation:
    """Messages, and tools that the assistant may call.

    Attributes:
        messages: The messages, in order.
        tools: Schemas of the tools.
        add_generation_prompt: Whether an answer to the messages is to be generated.
        variables: Further names that a template reads, such as ``enable_thinking``, with their values.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    add_generation_prompt: bool
    variables: Mapping[str, Any] = field(hash=False)

    def __init__(
        self,
        turns: Iterable[Turn] = (),
        system: str | None = None,
        *,
        messages: Iterable[Message] | None = None,
        tools: Tools = (),
        add_generation_prompt: bool | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """A conversation of turns in text, or of messages.

        Args:
            turns: What a user says and the answers; the last answer is None where it is to be generated.
            system: System prompt before the turns.
            messages: The messages, instead of turns.
            tools: Schemas of the tools.
            add_generation_prompt: Whether an answer is to be generated; None = where no answer is last.
            variables: Further names for the template; None = none.
        """
        found = messages_of(turns, system) if messages is None else tuple(messages)
        ask = not (found and found[-1].is_answer) if add_generation_prompt is None else add_generation_prompt
        named = {
            "messages": found,
            "tools": tuple(tools),
            "add_generation_prompt": ask,
            "variables": dict(variables or {}),
        }
        for name, value in named.items():
            object.__setattr__(self, name, value)

    @property
    def system(self) -> str | None:
        """The text of the system message that begins the conversation, if one does."""
        first = self.messages[0] if self.messages else None
        return first.content if first and first.role == "system" else None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """User texts and answers, where these are all messages after the system prompt.

        Raises:
            ValueError: The conversation holds something else.
        """
        reason = self.beyond_turns()
        if reason:
            raise ValueError(f"the conversation has {reason}")
        texts = [message.content or "" for message in self._body]
        answers: list[str | None] = [*texts[1::2]]
        return tuple(zip(texts[::2], answers + [None] * (len(texts) % 2), strict=True))

    def beyond_turns(self) -> str | None:
        """What the conversation has besides a system prompt, user texts and an answer to each; None = nothing."""
        if self.tools or self.variables:
            return "tools" if self.tools else f"the variable {next(iter(self.variables))!r}"
        roles = [message.role for message in self._body]
        for message in self.messages:
            if message.role == "tool":
                return "a tool result"
            if message.more:
                return "tool calls" if "tool_calls" in message.more else f"the key {next(iter(message.more))!r}"
        if "system" in roles or len(self.messages) - len(roles) > 1:
            return "several system prompts, or one after the first message"
        if roles != [("user", "assistant")[index % 2] for index in range(len(roles))]:
            twice = next((role for role, after in zip(roles, roles[1:], strict=False) if role == after), None)
            return f"consecutive messages of the role {twice}" if twice else "an answer before any user message"
        return None

    def turn_starts(self) -> list[int]:
        """Index of the message that begins each turn.

        A turn is what a user says, and everything up to the next user message after an answer: tool calls and their results
        stay together. Leading system messages belong to no turn.
        """
        head = len(self.messages) - len(self._body)
        return [
            index
            for index in range(head, len(self.messages))
            if index == head
            or (
                self.messages[index].role in ("user", "system")
                and self.messages[index - 1].role in ("assistant", "tool")
            )
        ]

    def without_turns(self, count: int) -> Conversation:
        """The conversation without its oldest turns; leading system messages stay."""
        starts = self.turn_starts()
        if not count:
            return self
        head = self.messages[: starts[0]]
        return replace(self, messages=(*head, *self.messages[starts[count] :]))

    @property
    def question(self) -> str:
        """The last user text; empty if there is none."""
        return next((message.content or "" for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def answer(self) -> Message | None:
        """The last message if it is an answer."""
        return None if self.add_generation_prompt or not self.messages else self.messages[-1]

    def before(self, index: int) -> Conversation:
        """The messages before one of them, which is to be generated."""
        return replace(self, messages=self.messages[:index], add_generation_prompt=True)

    def through(self, index: int) -> Conversation:
        """The messages up to an answer and with it."""
        return replace(self, messages=self.messages[: index + 1], add_generation_prompt=False)

    def asked(self) -> Conversation:
        """The conversation before its last answer, if an answer is last."""
        return self if self.add_generation_prompt else self.before(len(self.messages) - 1)

    def answered(self, message: Message) -> Conversation:
        """The conversation with one more message, an answer."""
        return replace(self, messages=(*self.messages, message), add_generation_prompt=False)

    def with_last_turn_of(self, other: Conversation) -> Conversation:
        """The conversation with another one's last turn instead of its own."""
        kept = self.messages[: self.turn_starts()[-1]]
        return replace(self, messages=(*kept, *other.messages[other.turn_starts()[-1] :]))

    def with_content(self, index: int, content: str) -> Conversation:
        """The conversation with another text in one message."""
        changed = self.messages[index]._replace(content=content)
        return replace(self, messages=(*self.messages[:index], changed, *self.messages[index + 1 :]))

    def last_answer_only(self) -> Conversation:
        """The conversation in which only the last answer is trained on."""
        last = max((index for index, message in enumerate(self.messages) if message.is_answer), default=None)
        kept = (
            message._replace(train=message.train and index == last) if message.is_answer else message
            for index, message in enumerate(self.messages)
        )
        return replace(self, messages=tuple(kept))

    def map(self, change: Callable[[str], str]) -> Conversation:
        """The conversation with every text changed, those in tool calls and schemas of tools among them."""
        messages = tuple(message.map(change) for message in self.messages)
        variables = {name: _map(value, change) for name, value in self.variables.items()}
        tools = tuple(_map(tool, change) for tool in self.tools)
        return replace(self, messages=messages, tools=tools, variables=variables)

    @property
    def _body(self) -> tuple[Message, ...]:
        """The messages after leading system messages, of which plain turns have one at most."""
        first = next((i for i, message in enumerate(self.messages) if message.role != "system"), len(self.messages))
        return self.messages[first:]


def messages_of(turns: Iterable[Turn], system: str | None = None) -> tuple[Message, ...]:
    """The messages of turns."""
    messages = [] if system is None else [Message("system", system)]
    for user, answer in turns:
        messages.append(Message("user", user))
        if answer is not None:
            messages.append(Message("assistant", answer))
    return tuple(messages)


def _map(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every text changed, keys of objects among them."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _map(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map(item, change) for item in value]
    return value
