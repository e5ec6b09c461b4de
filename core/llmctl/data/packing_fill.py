"""How full rows would be if examples were packed into rows of a length; computed from lengths alone."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any


def fill(lengths: Sequence[int], width: int) -> dict[str, Any]:
    """Rows and their fill for three ways: an example a row, first come (a row is closed when the next does not fit),
    best fit (longest first, each into the fullest row that has room).

    Args:
        lengths: Tokens of each example, none above ``width``.
        width: Tokens of a row.
    """
    ways = {"unpacked": len(lengths), "first_come": _first_come(lengths, width), "best_fit": _best_fit(lengths, width)}
    tokens = sum(lengths)
    return {name: {"rows": rows, "fill": round(tokens / (rows * width), 4)} for name, rows in ways.items()}


def _first_come(lengths: Sequence[int], width: int) -> int:
    rows, room = 0, 0
    for length in lengths:
        if length > room:
            rows, room = rows + 1, width
        room -= length
    return rows


def _best_fit(lengths: Sequence[int], width: int) -> int:
    rooms: list[int] = []
    rows = 0
    for length in sorted(lengths, reverse=True):
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            rows, room = rows + 1, width
        else:
            room = rooms.pop(at)
        bisect.insort(rooms, room - length)
    return rows
