"""One direction in which ranks share the work. Nothing here imports paddle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Axis:
    """The ranks that differ in one coordinate only, this one among them.

    Attributes:
        name: What they share, such as ``"tensor"``.
        rank: Place of this rank among them, from 0.
        size: How many they are.
        group: Their process group; None = this rank is alone, and nothing is ever sent.
    """

    name: str
    rank: int
    size: int
    group: Any = None
