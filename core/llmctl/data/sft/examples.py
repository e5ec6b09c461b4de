"""Reading fine-tuning data: conversations to train on, in any format of ``llmctl.data.formats.SFT``.

All invalid lines of all files are reported in one error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from llmctl.data.files import find_files, records
from llmctl.data.formats import SFT, Reader, chosen_formats, columns_of
from llmctl.errors import DataError
from llmctl.tokenizers.conversation import Conversation, messages_of

MAX_LISTED = 30
MANY = 3
"""Lines with the same mistake from which on they are one line of the message."""
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
    """Parses the example in a line, whatever its format.

    Raises:
        ValueError: The line is not valid; the message is the reason.
    """
    return ExampleReader()(text, source)


class ExampleReader(Reader[Conversation]):
    """Parses the examples of lines, and counts formats and keys that are not read."""

    def __init__(self, form: str = "auto", columns: Sequence[str] = ()) -> None:
        """A reader of the table SFT.

        Args:
            form: Name of the only format, or ``auto``.
            columns: Names of keys, as ``theirs=ours``.

        Raises:
            ConfigError: A name of ``columns`` is not valid.
        """
        super().__init__(chosen_formats(SFT, form), columns_of(columns))

    def __call__(self, text: str | None, source: str) -> Example:
        """Parses the example in a line; see ``Reader.read``."""
        return Example.of(self.read(text, source), source)


def read_split(paths: Sequence[Path], split: str, optional: bool = False) -> list[Example]:
    """Reads all fine-tuning examples of a split; see ``read_examples``."""
    return read_examples(paths, split, parse_example, optional)


def read_examples(paths: Sequence[Path], split: str, parse: Parse[E], optional: bool = False) -> list[E]:
    """Reads all examples of a split, in the order of files and lines.

    Args:
        paths: Files, or folders; see ``llmctl.data.files.find_files``.
        split: ``"train"`` or ``"dev"``.
        parse: Parses a line.
        optional: Whether to skip folders without the split.

    Raises:
        DataError: A folder has no such split, a file has no examples, or lines are not valid; all are listed.
    """
    examples: list[E] = []
    problems: list[tuple[str, str]] = []
    for path in paths:
        for file in find_files(path, split, optional):
            _read(file, parse, examples, problems)
    if problems:
        raise DataError(listing(problems, f"problem{'s' if len(problems) > 1 else ''} in the {split} data:"))
    return examples


def listing(problems: Sequence[tuple[str, str]], title: str) -> str:
    """A message of problems: a line for each, or for each kind of those that are many.

    Args:
        problems: Place and reason of each.
        title: What follows the number of problems in the head line.
    """
    places: dict[str, list[str]] = {}
    for place, reason in problems:
        places.setdefault(reason, []).append(place)
    lines: list[str] = []
    for reason, where in places.items():
        if len(where) > MANY:
            lines.append(f"{len(where)} lines: {reason} ({', '.join(where[:MANY])} ...)")
        else:
            lines += [f"{place}: {reason}" for place in where]
    more = f"\n  and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
    return "\n  ".join([f"{len(problems)} {title}", *lines[:MAX_LISTED]]) + more


def _read(file: Path, parse: Parse[E], examples: list[E], problems: list[tuple[str, str]]) -> None:
    before = len(examples) + len(problems)
    for source, text in records(file):
        try:
            examples.append(parse(text, source))
        except ValueError as error:
            problems.append((source, str(error)))
    if len(examples) + len(problems) == before:
        problems.append((str(file), "the file has no examples"))
