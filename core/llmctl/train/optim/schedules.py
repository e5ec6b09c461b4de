"""Learning rates as pure functions of the step; nothing here keeps state, so a resumed run needs none."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
"""Step, from 1 -> learning rate."""


def schedule(name: str, peak: float, steps: int, warmup: int = 0, min_ratio: float = 0.0) -> Schedule:
    """A linear warm-up to ``peak``, then the named decay to ``min_ratio * peak``.

    Step ``warmup`` has the peak; the decay ends one step after ``steps``, so that no step has a learning rate of zero.

    Args:
        name: ``linear``, ``cosine`` or ``constant``; ``constant`` ignores ``min_ratio``.
        peak: The highest learning rate.
        steps: Number of steps after which the decay ends; the learning rate then stays.
        warmup: Number of warm-up steps; more than ``steps`` = the peak is never reached.
        min_ratio: Final learning rate as a fraction of the peak.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in DECAYS:
        raise ValueError(f"schedule={name!r} is unknown; known: {', '.join(DECAYS)}")
    decay = DECAYS[name]

    def rate(step: int) -> float:
        if step <= warmup:
            return peak * step / warmup
        done = (step - 1 - warmup) / max(1, steps - warmup)
        return peak * (min_ratio + (1 - min_ratio) * decay(min(1.0, max(0.0, done))))

    return rate


DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "constant": lambda done: 1.0,
}
"""Fraction of the decay done, 0 to 1 -> fraction of the learning rate above its end, 1 to 0."""
