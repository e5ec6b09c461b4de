"""Learning rates as pure functions of the step; nothing here keeps state, so a resumed run needs none."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
"""Update number, counted from 1, -> learning rate."""


def schedule(name: str, peak: float, steps: int, warmup: int = 0, min_ratio: float = 0.0) -> Schedule:
    """A warm-up along a straight line to ``peak``, then the named course down to ``min_ratio * peak``.

    Update ``warmup`` has the peak; the course reaches its end one update after ``steps``, so that no update is lost to a
    learning rate of zero.

    Args:
        name: ``linear``, ``cosine`` or ``constant``; ``constant`` ignores ``min_ratio``.
        peak: The highest learning rate.
        steps: Number of updates after which the course is at its end, where it stays.
        warmup: Number of updates in the warm-up; longer than ``steps`` = the peak is never reached.
        min_ratio: Learning rate at the end as a part of the peak.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in COURSES:
        raise ValueError(f"schedule={name!r} is unknown; known: {', '.join(COURSES)}")
    course = COURSES[name]

    def rate(step: int) -> float:
        if step <= warmup:
            return peak * step / warmup
        done = (step - 1 - warmup) / max(1, steps - warmup)
        return peak * (min_ratio + (1 - min_ratio) * course(min(1.0, max(0.0, done))))

    return rate


COURSES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "constant": lambda done: 1.0,
}
"""Part of training done, 0 to 1, -> height above the end, 1 to 0."""
