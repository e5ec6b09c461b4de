"""Reads a ``keys.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.config.file import read_file
from llmctl.jobs.registry import COMMANDS


@dataclass(frozen=True)
class Unsupported:
    """A key whose feature is not supported.

    Attributes:
        instead: What to do instead.
        neutral: Values that turn the feature off, besides falsy ones.
    """

    instead: str
    neutral: tuple[Any, ...]

    def is_off(self, value: Any) -> bool:
        """Whether the value turns the feature off."""
        return not value or any(value == off and type(value) is type(off) for off in self.neutral)


@dataclass(frozen=True)
class Table:
    """What becomes of the old keys.

    Attributes:
        aliases: Alias -> key.
        same: Key -> command -> new key.
        derived: Keys that the rules read.
        no_effect: Key -> why it has no effect.
        unsupported: Key -> its feature.
    """

    aliases: Mapping[str, str]
    same: Mapping[str, Mapping[str, str]]
    derived: frozenset[str]
    no_effect: Mapping[str, str]
    unsupported: Mapping[str, Unsupported]

    @property
    def names(self) -> list[str]:
        """All keys that an old file may have."""
        return [*self.aliases, *self.same, *self.derived, *self.no_effect, *self.unsupported]


def read_table(path: Path) -> Table:
    """The table in a ``keys.yaml``."""
    data = read_file(path)
    return Table(
        aliases=data["aliases"],
        same={
            key: target if isinstance(target, dict) else dict.fromkeys(COMMANDS, target)
            for key, target in data["same"].items()
        },
        derived=frozenset(data["derived"]),
        no_effect={key: group["reason"] for group in data["no_effect"] for key in group["keys"]},
        unsupported={
            key: Unsupported(group["instead"], tuple(group.get("neutral", ())))
            for group in data["unsupported"]
            for key in group["keys"]
        },
    )
