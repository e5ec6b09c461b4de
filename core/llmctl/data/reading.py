"""Reads all examples of files; everything that is wrong with any line is one error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from llmctl.data.files import ReadBytes, records
from llmctl.data.formats import Problems
from llmctl.errors import DataError

E = TypeVar("E")
Parse = Callable[[str | None, str], E]
"""(text of a line, or None if it is not UTF-8; ``file:line``) -> example. Raises ValueError with the reason."""


def way_out(columns: str = "", form: str = "") -> str:
    """What to do about lines that cannot be used.

    Args:
        columns: The key of the configuration that renames keys of the data; empty = there is none.
        form: The key that names a format.
    """
    renamed = f"keys of other names are read with {columns}=[theirs=ours], " if columns else ""
    named = f"{form} names one format, " if form else ""
    return f"correct or remove them; {renamed}{named}{'and ' if columns or form else ''}docs/data.md shows a line of each format"


WAY_OUT = way_out("data.columns", "data.format")


def read_files(
    files: Sequence[Path], parse: Parse[E], split: str = "train", read: ReadBytes | None = None, remedy: str = WAY_OUT
) -> tuple[list[E], list[int]]:
    """All examples, in the order of files and lines, and how many each file has.

    Args:
        files: The files.
        parse: Parses a line.
        split: What the data is for, for messages.
        read: Called with the bytes that were read.
        remedy: What to do about lines that are not valid.

    Raises:
        DataError: A file has no examples, or lines are not valid: each kind of mistake is named once, with its places.
    """
    examples: list[E] = []
    counts: list[int] = []
    problems = Problems()
    for file in files:
        before = len(examples) + problems.count
        for source, text in records(file, read):
            try:
                examples.append(parse(text, source))
            except ValueError as error:
                problems.add(source, str(error))
        if len(examples) + problems.count == before:
            problems.add(str(file), "the file has no examples")
        counts.append(len(examples) - sum(counts))
    check(problems, split, remedy)
    return examples, counts


def check(problems: Problems, split: str, remedy: str = WAY_OUT) -> None:
    """Raises a DataError of problems, if there are any."""
    if problems:
        raise DataError(problems.message(f"problem{'s' if problems.count > 1 else ''} in the {split} data:", remedy))
