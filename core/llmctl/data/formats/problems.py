"""Messages of lines that cannot be used: one for each kind of mistake."""

from __future__ import annotations

import re

KINDS = 20
"""Kinds of mistakes that a message lists."""
PLACES = 3
"""Places that it names of each."""


class Problems:
    """Lines that cannot be used, by kind of mistake; memory does not grow with their number."""

    def __init__(self) -> None:
        self.count = 0
        self._kinds: dict[str, tuple[str, list[str]]] = {}
        self._counts: dict[str, int] = {}

    def add(self, place: str, reason: str) -> None:
        """One more line; reasons that differ in numbers only are of a kind.

        Args:
            place: ``file:line``.
            reason: What is wrong.
        """
        kind = re.sub(r"\d+", "#", reason)
        _, places = self._kinds.setdefault(kind, (reason, []))
        if len(places) < PLACES:
            places.append(place)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self.count += 1

    def __bool__(self) -> bool:
        return self.count > 0

    def lines(self) -> list[str]:
        """A line for each kind: where and what, with the number of lines that have it."""
        found = []
        for kind, (reason, places) in self._kinds.items():
            count = self._counts[kind]
            more = " ..." if count > len(places) else ""
            found.append(
                f"{places[0]}: {reason}" if count == 1 else f"{count} lines ({', '.join(places)}{more}): {reason}"
            )
        more_kinds = len(found) - KINDS
        return found[:KINDS] + ([f"and {more_kinds} more kinds of mistakes"] if more_kinds > 0 else [])

    def message(self, title: str, way_out: str = "") -> str:
        """The whole message.

        Args:
            title: What follows the number of lines in the head line.
            way_out: What to do, as its last line.
        """
        return "\n  ".join([f"{self.count} {title}", *self.lines()]) + (f"\n{way_out}" if way_out else "")
