"""A format of examples, and how that of a row is recognised."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
SHOWN = 8
"""Keys of a row that a message names."""


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
    read: Callable[[Mapping[str, Any]], T]

    @property
    def known(self) -> tuple[str, ...]:
        """All keys that are read."""
        return (*self.keys, *self.more)

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has all its keys."""
        return all(row.get(key) is not None for key in self.keys)


def chosen_formats(formats: Sequence[Format[T]], name: str) -> Sequence[Format[T]]:
    """The format of a name alone, or all for ``auto``."""
    return formats if name == "auto" else [form for form in formats if form.name == name]


def recognise(row: Mapping[str, Any], formats: Sequence[Format[T]]) -> Format[T]:
    """The first format that a row fits.

    Raises:
        ValueError: It fits none; the message says what it looks like, and what is missing.
    """
    for form in formats:
        if form.fits(row):
            return form
    nearest = max(
        formats, key=lambda form: [sum(row.get(key) is not None for key in part) for part in (form.keys, form.more)]
    )
    if len(formats) > 1 and not any(row.get(key) is not None for key in nearest.known):
        has = ", ".join(map(repr, list(row)[:SHOWN])) or "nothing"
        known = "; ".join(f"{form.name} ({', '.join(form.keys)})" for form in formats)
        raise ValueError(f"no known format: the line has {has}; known are {known}")
    missing = next(key for key in nearest.keys if row.get(key) is None)
    if missing in row:
        raise ValueError(f"looks like {nearest.name}, but {missing!r} is null")
    near = difflib.get_close_matches(missing, [key for key in row if key not in nearest.known], 1, cutoff=0.5)
    found = f" (found {near[0]!r})" if near else ""
    raise ValueError(f"looks like {nearest.name} ({', '.join(nearest.keys)}), but: missing key {missing!r}{found}")
