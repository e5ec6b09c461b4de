"""The table of old keys, ``keys.yaml``, as mappings."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.config.file import read_file
from llmctl.jobs.registry import PARTS


@dataclass(frozen=True)
class Absent:
    """A key whose feature is not offered.

    Attributes:
        instead: What to do.
        neutral: Values that mean that the feature is off; falsy ones always do.
    """

    instead: str
    neutral: tuple[Any, ...]

    def is_off(self, value: Any) -> bool:
        """Whether the value means nothing."""
        return not value or any(value == one and type(value) is type(one) for one in self.neutral)


@dataclass(frozen=True)
class Table:
    """What becomes of old keys.

    Attributes:
        aliases: Other name -> key.
        same: Key -> our key by command.
        derived: Keys that rules read.
        idle: Key -> why it has no effect.
        absent: Key -> what is not offered.
    """

    aliases: Mapping[str, str]
    same: Mapping[str, Mapping[str, str]]
    derived: frozenset[str]
    idle: Mapping[str, str]
    absent: Mapping[str, Absent]

    @property
    def names(self) -> list[str]:
        """Every key that an old file may have."""
        return [*self.aliases, *self.same, *self.derived, *self.idle, *self.absent]


@functools.cache
def table() -> Table:
    """The table."""
    data = read_file(Path(__file__).with_name("keys.yaml"))
    return Table(
        aliases=data["aliases"],
        same={
            key: target if isinstance(target, dict) else dict.fromkeys(PARTS, target)
            for key, target in data["same"].items()
        },
        derived=frozenset(data["derived"]),
        idle={key: part["because"] for part in data["idle"] for key in part["keys"]},
        absent={
            key: Absent(part["instead"], tuple(part.get("neutral", ())))
            for part in data["absent"]
            for key in part["keys"]
        },
    )
