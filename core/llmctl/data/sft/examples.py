"""Reading fine-tuning data: JSON lines of prompts and answers.

A line is ``{"src": text or list, "tgt": text or list, "context": {"system": text}}``. A list holds the turns of a
conversation; ``context`` is optional. All invalid lines of all files are reported in one error.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from llmctl.errors import DataError
from llmctl.tokenizers.conversation import Conversation, messages_of

MAX_LISTED = 30
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_SUFFIXES = (".jsonl", ".json")
_KEYS = ("src", "tgt", "context")
E = TypeVar("E")
Parse = Callable[[str | None, str], E]
"""(text of a line, or None if it is not UTF-8; ``file:line``) -> example. Raises ValueError with the reason."""


class Example:
    """A conversation to train on, and its source (``file:line``).

    Args:
        src: User texts of the turns.
        tgt: Answer to each.
        system: System prompt, if any.
        source: Where it comes from.
    """

    __slots__ = ("_messages", "_tools", "source")

    def __init__(self, src: Sequence[str], tgt: Sequence[str], system: str | None = None, source: str = ""):
        self._messages, self._tools = messages_of(zip(src, tgt, strict=True), system), ()
        self.source = source

    @classmethod
    def of(cls, chat: Conversation, source: str) -> Example:
        """The example of a conversation, which ends with an answer."""
        example = cls((), (), source=source)
        example._messages, example._tools = chat.messages, chat.tools
        return example

    @property
    def conversation(self) -> Conversation:
        """The conversation, with all answers."""
        return Conversation(messages=self._messages, tools=self._tools)

    @property
    def question(self) -> str:
        """The last user text."""
        return self.conversation.question


def parse_example(text: str | None, source: str) -> Example:
    """Parses the example in a line.

    Raises:
        ValueError: The line is not valid; the message is the reason.
    """
    row = parse_object(text)
    require_keys(row, ("src", "tgt"), _KEYS)
    src, tgt = (turns(key, row[key]) for key in ("src", "tgt"))
    if len(src) != len(tgt):
        raise ValueError(f"'src' has {len(src)} turns, 'tgt' has {len(tgt)}")
    return Example(src, tgt, system_text(row.get("context")), source)


def read_split(paths: Sequence[Path], split: str, optional: bool = False) -> list[Example]:
    """Reads all fine-tuning examples of a split; see ``read_examples``."""
    return read_examples(paths, split, parse_example, optional)


def read_examples(paths: Sequence[Path], split: str, parse: Parse[E], optional: bool = False) -> list[E]:
    """Reads all examples of a split, in the order of files and lines.

    Args:
        paths: Files, or folders with ``<split>.json(l)`` or with a folder ``<split>`` of such files.
        split: ``"train"`` or ``"dev"``.
        parse: Parses a line.
        optional: Whether to skip folders without the split.

    Raises:
        DataError: A folder has no such split, a file has no examples, or lines are not valid; all are listed.
    """
    examples: list[E] = []
    problems: list[str] = []
    for path in paths:
        for file in _files(path, split, optional):
            _read(file, parse, examples, problems)
    if problems:
        more = f"\n  and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        head = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the {split} data:"
        raise DataError("\n  ".join([head, *problems[:MAX_LISTED]]) + more)
    return examples


def read_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """(line number, text) of the lines of a file that are not blank; text is None if the line is not UTF-8."""
    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                yield number, None
                continue
            if text.strip():
                yield number, text


def parse_object(text: str | None) -> dict[str, Any]:
    """Parses the JSON object in a line.

    Raises:
        ValueError: The line is not a JSON object; the message is the reason.
    """
    if text is None:
        raise ValueError("not valid UTF-8")
    try:
        row = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {_kind(row)}")
    half = _HALF_PAIR.search(json.dumps(row, ensure_ascii=False)) if _SURROGATE.search(text) else None
    if half:
        raise ValueError(f"\\u{ord(half[0]):04x} is half of a surrogate pair, not a character")
    return row


def require_keys(row: dict[str, Any], keys: Sequence[str], known: Sequence[str]) -> None:
    """Checks that a row has all keys.

    Raises:
        ValueError: A key is missing; the message suggests a similar one.
    """
    for key in keys:
        if key not in row:
            near = difflib.get_close_matches(key, [name for name in row if name not in known], 1, cutoff=0.5)
            raise ValueError(f"missing key {key!r}" + (f" (found {near[0]!r})" if near else ""))


def _files(path: Path, split: str, optional: bool) -> list[Path]:
    if path.is_file():
        return [path]
    found = [path / (split + suffix) for suffix in _SUFFIXES if (path / (split + suffix)).is_file()]
    if (path / split).is_dir():
        found += sorted(file for file in (path / split).iterdir() if file.suffix in _SUFFIXES)
    if not found and not optional:
        names = ", ".join(split + suffix for suffix in _SUFFIXES)
        what = (
            "does not exist" if not path.exists() else f"has no {split} data: looked for {names} and {split}/*.json(l)"
        )
        raise DataError(f"{path} {what}")
    return found


def _read(file: Path, parse: Parse[E], examples: list[E], problems: list[str]) -> None:
    before = len(examples) + len(problems)
    for number, text in read_lines(file):
        source = f"{file}:{number}"
        try:
            examples.append(parse(text, source))
        except ValueError as error:
            problems.append(f"{source}: {error}")
    if len(examples) + len(problems) == before:
        problems.append(f"{file}: the file has no examples")


def turns(key: str, value: Any) -> tuple[str, ...]:
    """The texts of a key, a string or a list of strings; answers must not be empty.

    Raises:
        ValueError: A text is not a string, or an answer is empty.
    """
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ValueError(f"{key!r} is an empty list")
    for turn in texts:
        if not isinstance(turn, str):
            raise ValueError(f"{key!r} must be a string or a list of strings, not {_kind(turn)}")
        if key != "src" and not turn.strip():
            raise ValueError(f"{key!r} is empty")
    return tuple(texts)


def system_text(context: Any) -> str | None:
    """The system prompt in the ``context`` of a row.

    Raises:
        ValueError: The context is not valid.
    """
    if context is None:
        return None
    if not isinstance(context, dict):
        raise ValueError(f"'context' must be an object, not {_kind(context)}")
    system = context.get("system")
    if system is not None and not isinstance(system, str):
        raise ValueError(f"'context.system' must be a string, not {_kind(system)}")
    unknown = sorted(set(context) - {"system"})
    if unknown:
        raise ValueError(f"'context' allows only the key 'system', not {unknown[0]!r}")
    return system


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return row


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
