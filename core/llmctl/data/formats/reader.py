"""Reads lines of any format of a table, and counts what it saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from llmctl.data.formats.format import Format, recognise
from llmctl.data.formats.messages import METADATA, has_text
from llmctl.data.formats.rows import parse_object
from llmctl.errors import ConfigError

T = TypeVar("T")
SHOWN = 3
"""Files that a line on formats names."""
OTHER_NAMES = {
    "question": ("instruction",), "query": ("instruction",), "problem": ("instruction",), "context": ("input",),
    "answer": ("output", "completion"), "response": ("output", "completion"), "output": ("completion",),
    "solution": ("output", "completion"), "reply": ("output", "completion"), "input": ("instruction", "prompt"),
    "conversation": ("conversations",), "dialog": ("conversations",), "accepted": ("chosen",), "positive": ("chosen",),
    "negative": ("rejected",),
}  # fmt: skip
"""What keys are called in some files -> in formats, to propose them."""


@dataclass
class Reader(Generic[T]):
    """Reads rows of any format of a table, and counts formats and keys that are not read.

    Attributes:
        formats: The table.
        columns: Name of a key in the data -> its name in the format.
        elsewhere: Command -> the table of formats that it reads, to name it where a line is for another one.
        found: File -> name of a format -> rows.
        unread: Key with text that is not read -> number of rows, and the first places.
    """

    formats: Sequence[Format[T]]
    columns: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, Sequence[Format[Any]]] = field(default_factory=dict)
    found: dict[str, Counter[str]] = field(default_factory=dict)
    unread: dict[str, Unread] = field(default_factory=dict)

    def read(self, text: str | None, source: str) -> T:
        """What a line holds.

        Raises:
            ValueError: The line is not valid; the message is the reason.
        """
        return self.row(text, source)[0]

    def row(self, text: str | None, source: str) -> tuple[T, dict[str, Any]]:
        """What a line holds, and its object; raises as ``read``."""
        row = _renamed(parse_object(text), self.columns)
        try:
            form = recognise(row, self.formats)
            value = form.read({key: row[key] for key in form.known if key in row})
        except ValueError as error:
            raise ValueError(f"{error}{self._renaming(row) or self._for_another(row)}") from None
        self.found.setdefault(source.rpartition(":")[0], Counter())[form.name] += 1
        for key in row:
            if key not in form.known and key not in METADATA and has_text(row[key]):
                self.unread.setdefault(key, Unread()).add(source)
        return value, row

    def warnings(self) -> list[str]:
        """Warnings of keys that are not read."""
        return [
            f"the key {key!r} holds text that is not read, in {seen}; rename or remove it"
            for key, seen in self.unread.items()
        ]

    def counts(self) -> dict[str, int]:
        """The formats that were found, with the number of rows of each."""
        total: Counter[str] = Counter()
        for formats in self.found.values():
            total.update(formats)
        return dict(total)

    def summary(self) -> str:
        """The formats that were found, with the names of the files."""
        files: dict[str, list[str]] = {}
        for file, formats in self.found.items():
            counted = " and ".join(f"{name} in {_lines(count)}" for name, count in formats.items())
            files.setdefault(counted if len(formats) > 1 else "".join(formats), []).append(file)
        return "data format: " + "; ".join(
            f"{what} ({', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''})"
            for what, names in files.items()
        )

    def _renaming(self, row: Mapping[str, Any]) -> str:
        """The columns with which a row would be of a format."""
        for form in self.formats:
            names = _other_names(row, form)
            if form.fits({names.get(key, key): value for key, value in row.items()}):
                used = ", ".join(f"{key}={ours}" for key, ours in names.items())
                return "" if form.fits(row) else f"; with the columns {used} it would be {form.name}"
        return ""

    def _for_another(self, row: Mapping[str, Any]) -> str:
        fitting = (
            f"; it would be a line of {form.name} for llmctl {command}"
            for command, formats in self.elsewhere.items()
            for form in formats
            if form.fits(row)
        )
        return next(fitting, "")


def _other_names(row: Mapping[str, Any], form: Format[Any]) -> dict[str, str]:
    """Key of a row -> key of a format that it may stand for."""
    found: dict[str, str] = {}
    for key, names in OTHER_NAMES.items():
        free = [name for name in names if name in form.known and name not in row and name not in found.values()]
        if free and row.get(key) is not None and key not in form.known:
            found[key] = free[0]
    return found


class Unread:
    """How many rows have a key that is not read, and where first."""

    def __init__(self) -> None:
        self.count = 0
        self.places: list[str] = []

    def add(self, place: str) -> None:
        """One more row."""
        self.count += 1
        if len(self.places) < SHOWN:
            self.places.append(place)

    def __str__(self) -> str:
        return f"{_lines(self.count)} ({', '.join(self.places)}{' ...' if self.count > len(self.places) else ''})"


def _lines(count: int) -> str:
    return f"{count} line{'s' if count > 1 else ''}"


def columns_of(entries: Sequence[str], option: str = "data.columns") -> dict[str, str]:
    """Name of a key in the data -> its name in the format, of entries ``theirs=ours``.

    Args:
        entries: The entries.
        option: Where they were given, for messages.

    Raises:
        ConfigError: An entry is none.
    """
    pairs = [entry.partition("=")[::2] for entry in entries]
    wrong = next((entry for entry, pair in zip(entries, pairs, strict=True) if not all(pair)), None)
    if wrong is not None:
        raise ConfigError(f"{option}={wrong!r}: write the key in the data, =, and the key of the format")
    twice = next((ours for _, ours in pairs if [name for _, name in pairs].count(ours) > 1), None)
    if twice is not None:
        raise ConfigError(f"{option} names two keys for {twice!r}; leave one")
    return dict(pairs)


def _renamed(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    taken = next((name for name in columns if name in row and columns[name] in row), None)
    if taken is not None:
        raise ValueError(f"{taken!r} is to be renamed to {columns[taken]!r}, which the line has too")
    return {columns.get(key, key): value for key, value in row.items()}
