"""What the conversion must know of another program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmctl.migrate.table import Table, read_table

Old = Mapping[str, Any]
Values = dict[str, Any]
Rule = Callable[[Old, str], Values]
"""(old keys, command) -> values of new keys; raises ValueError with what cannot be converted."""


@dataclass(frozen=True)
class Dialect:
    """Configurations of a program.

    Attributes:
        name: Its name, for messages.
        keys: The file of its keys.
        recognise: Whether a file is one of its own.
        command: The command that does the same as a file, or a key of ``refused``.
        refused: Purpose that no command serves -> the message.
        defaults: Command -> defaults that differ from the new ones.
        inactive: (reason, whether a feature is on, keys that have no effect unless it is).
        rules: The rules.
        effects: Keys that were converted but mean something else -> what; for notes.
    """

    name: str
    keys: Path
    recognise: Callable[[Old], bool]
    command: Callable[[Old], str]
    refused: Mapping[str, str]
    defaults: Mapping[str, Values]
    inactive: Sequence[tuple[str, Callable[[Old], Any], Sequence[str]]]
    rules: Sequence[Rule]
    effects: Callable[[Old, str], Mapping[str, str]]

    @cached_property
    def table(self) -> Table:
        """The table of its keys."""
        return read_table(self.keys)
