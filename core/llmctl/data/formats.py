"""The formats of examples that people have, each recognised by its keys, and how each becomes a conversation.

A format is a row of ``SFT`` or ``DPO``; ``Reader`` finds that of a line and counts what it saw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from llmctl.data.messages import has_text, labelled, message, messages, text_of, tools
from llmctl.data.rows import parse_object, require_keys, system_text, turns
from llmctl.errors import ConfigError
from llmctl.tokenizers.conversation import Conversation, Message, messages_of

T = TypeVar("T")
Row = Mapping[str, Any]
METADATA = (
    "id",
    "uuid",
    "source",
    "dataset",
    "category",
    "type",
    "task",
    "language",
    "lang",
    "split",
    "url",
    "license",
)
"""Keys with text that is about an example and no part of it."""


@dataclass(frozen=True)
class Format(Generic[T]):
    """A format.

    Attributes:
        name: Its name, for messages and ``data.format``.
        keys: Keys that a row must have, by which it is recognised.
        more: Further keys that are read.
        read: Reads a row; raises ValueError with the reason.
    """

    name: str
    keys: Sequence[str]
    more: Sequence[str]
    read: Callable[[Row], T]

    @property
    def known(self) -> tuple[str, ...]:
        """All keys that are read."""
        return (*self.keys, *self.more)


@dataclass
class Reader(Generic[T]):
    """Reads rows of any format of a table, and counts formats and keys that are not read.

    Attributes:
        formats: The table; the first one is assumed where a row fits none.
        columns: Name of a key in the data -> its name in the format.
        found: Name of a format -> rows.
        unread: Key with text that is not read -> places.
    """

    formats: Sequence[Format[T]]
    columns: Mapping[str, str] = field(default_factory=dict)
    found: Counter[str] = field(default_factory=Counter)
    unread: dict[str, list[str]] = field(default_factory=dict)

    def read(self, text: str | None, source: str) -> T:
        """What a line holds.

        Raises:
            ValueError: The line is not valid; the message is the reason.
        """
        row = _renamed(parse_object(text), self.columns)
        # Columns of tables have every key in every row.
        row = {key: value for key, value in row.items() if value is not None or key in ("src", "tgt")}
        form = recognise(row, self.formats)
        value = form.read(row)
        self.found[form.name] += 1
        for key in row:
            if key not in form.known and key not in METADATA and has_text(row[key]):
                self.unread.setdefault(key, []).append(source)
        return value

    def warnings(self) -> list[str]:
        """Warnings of keys that are not read."""
        return [
            f"the key {key!r} holds text that is not read, in {len(places)} lines, first in {places[0]}; rename or remove it"
            for key, places in self.unread.items()
        ]

    @property
    def summary(self) -> str:
        """The formats that were found, with the number of lines of each."""
        return ", ".join(f"{name} ({count} lines)" for name, count in self.found.items())


def chosen_formats(formats: Sequence[Format[T]], name: str) -> Sequence[Format[T]]:
    """The format of a name alone, or all for ``auto``."""
    return formats if name == "auto" else [form for form in formats if form.name == name]


def columns_of(entries: Sequence[str]) -> dict[str, str]:
    """Name of a key in the data -> its name in the format, of entries ``theirs=ours``.

    Raises:
        ConfigError: An entry is none.
    """
    pairs = [entry.partition("=")[::2] for entry in entries]
    wrong = next((entry for entry, pair in zip(entries, pairs, strict=True) if not all(pair)), None)
    if wrong is not None:
        raise ConfigError(f"data.columns={wrong!r}: write the key in the data, =, and the key of the format")
    return dict(pairs)


def _renamed(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    twice = next((name for name in columns if name in row and columns[name] in row), None)
    if twice is not None:
        raise ValueError(f"data.columns renames {twice!r} to {columns[twice]!r}, which the line has too")
    return {columns.get(key, key): value for key, value in row.items()}


def recognise(row: Row, formats: Sequence[Format[T]]) -> Format[T]:
    """The format of a row, by its keys.

    Raises:
        ValueError: It is none; the message names the nearest one and what is missing.
    """
    for form in formats:
        if all(key in row for key in form.keys):
            return form
    nearest = max(formats, key=lambda form: sum(key in row for key in form.keys))
    try:
        require_keys(dict(row), nearest.keys, nearest.known)
    except ValueError as error:
        if any(key in row for key in nearest.keys) and nearest is not formats[0]:
            raise ValueError(f"looks like {nearest.name}, but: {error}") from None
        known = "; ".join(f"{form.name} ({', '.join(form.keys)})" for form in formats)
        has = ", ".join(map(repr, list(row)[:8])) or "nothing"
        raise ValueError(f"{error}; the line has {has}, known formats are {known}") from None
    raise AssertionError("the nearest format lacks a key")


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


def _talk(row: Row, found: Sequence[Message]) -> Conversation:
    """The conversation of messages, with system prompt, tools and labels of the row."""
    system = system_of(row)
    if system and found[0].role == "system" and found[0].content != system:
        raise ValueError("'system' and the first message are two different system prompts; keep one")
    if system and found[0].role != "system":
        found = [Message("system", system), *found]
    if row.get("label") is not None:
        found = labelled(found, row["label"])
    return Conversation(messages=found, tools=tools(row.get("tools")))


def _answered(row: Row, found: Sequence[Message]) -> Conversation:
    """A conversation to train on: it ends with an answer."""
    chat = _talk(row, found)
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


def alpaca_prompt(row: Row) -> list[Message]:
    """Messages of Alpaca's keys without the answer: history, and instruction with input on a line of its own."""
    history = row.get("history") or []
    pairs = isinstance(history, list) and all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in history
    )
    if not pairs:
        raise ValueError("'history' must be a list of [question, answer]")
    asked = [text_of(key, row[key]) for key in ("instruction", "input") if row.get(key)]
    return list(messages_of([*map(tuple, history), ("\n".join(asked), None)]))


def _alpaca(row: Row) -> Conversation:
    return _answered(row, [*alpaca_prompt(row), _answer("output", row["output"])])


def texts_or_messages(key: str, value: Any) -> list[Message]:
    """A user's text, or messages."""
    return [Message("user", value)] if isinstance(value, str) else messages(key, value)


def _completion(row: Row) -> Conversation:
    value = row["completion"]
    answers = [_answer("completion", value)] if isinstance(value, str) else messages("completion", value)
    # Loss is on the completion only, as in TRL.
    asked = [item._replace(train=not item.is_answer) for item in texts_or_messages("prompt", row["prompt"])]
    return _answered(row, [*asked, *answers])


def _answer(key: str, value: Any) -> Message:
    """An answer, as text or as one message."""
    found = value[0] if isinstance(value, list) and len(value) == 1 else value
    item = message(key, found) if isinstance(found, dict) else Message("assistant", text_of(key, found))
    if not item.is_answer:
        raise ValueError(f"{key!r} is of the role {item.role}; it must be an assistant's answer")
    if not item.text.strip():
        raise ValueError(f"{key!r} is empty")
    return item


_SRC = ("context", "system", "label")
SFT: Sequence[Format[Conversation]] = (
    Format("llmctl", ("src", "tgt"), _SRC, _src_tgt),
    Format("ShareGPT", ("conversations",), ("tools", "system", "label"),
           lambda row: _answered(row, messages("conversations", row["conversations"]))),
    Format("messages", ("messages",), ("tools", "system", "label"),
           lambda row: _answered(row, messages("messages", row["messages"]))),
    Format("Alpaca", ("instruction", "output"), ("input", "system", "history"), _alpaca),
    Format("prompt-completion", ("prompt", "completion"), ("tools", "system"), _completion),
)  # fmt: skip

PROMPT_KEYS = ("conversations", "messages", "instruction", "input", "prompt")
"""Keys of prompts in all formats but our own."""


def asked(row: Row) -> Conversation:
    """The conversation to be continued in a row of any format but our own, without its last answer.

    Raises:
        ValueError: The row is of no such format.
    """
    key = next((key for key in PROMPT_KEYS if key in row and key != "input"), None)
    if key is None:
        raise ValueError(f"no 'src', nor one of {', '.join(PROMPT_KEYS)}")
    found = alpaca_prompt(row) if key == "instruction" else texts_or_messages(key, row[key])
    if found[-1].is_answer:
        found = found[:-1]
    if not found:
        raise ValueError(f"{key!r} has no message to answer")
    return _talk({name: value for name, value in row.items() if name != "label"}, found)


Choice = tuple[Conversation, Message, Message]
"""A conversation to be answered, the chosen answer, and the rejected one."""


def _choice(row: Row, found: Sequence[Message], chosen: str, rejected: str) -> Choice:
    """The choice between the answers of two keys."""
    better, other = (_answer(key, row[key]) for key in (chosen, rejected))
    return _different(_talk(row, found), better, other, f"{chosen!r} and {rejected!r} are the same")


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
    prompt = _talk(row, messages_of(zip(src, (*tgt, None), strict=True)))
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
    Format("llmctl", ("src", "tgt", "response", "sort"), ("context", "system"), _src_response),
    Format("ShareGPT", ("conversations", "chosen", "rejected"), ("tools", "system"),
           lambda row: _choice(row, messages("conversations", row["conversations"]), "chosen", "rejected")),
    Format("PaddleFormers", ("messages", "chosen_response", "rejected_response"), ("tools", "system"),
           lambda row: _choice(row, messages("messages", row["messages"]), "chosen_response", "rejected_response")),
    Format("Alpaca", ("instruction", "chosen", "rejected"), ("input", "system", "history"),
           lambda row: _choice(row, alpaca_prompt(row), "chosen", "rejected")),
    Format("prompt-chosen-rejected", ("chosen", "rejected"), ("prompt", "tools", "system"), _chosen),
)  # fmt: skip
