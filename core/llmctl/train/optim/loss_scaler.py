"""Dynamic loss scaling for float16, whose gradients would otherwise underflow.

The scale halves when a gradient overflows, and that step is skipped; after ``growth_interval`` steps in a row without an
overflow it doubles (https://arxiv.org/abs/1710.03740, section 3.2). Scales are the first one times a power of two, so that
they round nothing.
"""

from __future__ import annotations

import numpy as np

MIN_SCALE = 2.0**-24
"""Below this scale an overflow has another cause."""


class LossScaler:
    """The loss scale, as steps succeed or overflow.

    Args:
        scale: The first scale.
        growth_interval: Steps in a row without an overflow after which the scale doubles.

    Attributes:
        scale: The current scale.
        skipped: Number of skipped steps.
    """

    def __init__(self, scale: float, growth_interval: int) -> None:
        self.scale, self.skipped = scale, 0
        self._growth_interval, self._good_steps = growth_interval, 0

    def succeeded(self) -> None:
        """The gradients of a step were finite."""
        self._good_steps += 1
        if self._good_steps == self._growth_interval:
            self.scale, self._good_steps = 2 * self.scale, 0

    def overflowed(self) -> bool:
        """The gradients of a step were not finite; returns whether a smaller scale may help."""
        self.scale, self._good_steps, self.skipped = self.scale / 2, 0, self.skipped + 1
        return self.scale >= MIN_SCALE

    def state(self) -> np.ndarray:
        """What a resumed run needs."""
        return np.array([self.scale, self._good_steps, self.skipped], np.float64)

    def load(self, state: np.ndarray) -> None:
        """Restores a state."""
        self.scale, self._good_steps, self.skipped = float(state[0]), int(state[1]), int(state[2])
