"""The factor of losses in float16, whose gradients would otherwise be too small for the type.

It halves whenever a gradient overflows, and that update is left out; after many updates in a row without it doubles
(https://arxiv.org/abs/1710.03740, section 3.2). Factors are powers of two times the first, so that they round nothing.
"""

from __future__ import annotations

import numpy as np

LEAST = 2.0**-24
"""A factor below this means that gradients are not finite for another reason."""


class LossScale:
    """The factor, as updates succeed or overflow.

    Args:
        factor: The first factor.
        every: Updates in a row without an overflow after which it doubles.

    Attributes:
        factor: The present one.
        skipped: Updates that were left out.
    """

    def __init__(self, factor: float, every: int) -> None:
        self.factor, self.skipped = factor, 0
        self._every, self._row = every, 0

    def passed(self) -> None:
        """An update's gradients were finite."""
        self._row += 1
        if self._row == self._every:
            self.factor, self._row = 2 * self.factor, 0

    def overflowed(self) -> bool:
        """An update's gradients were not; whether a smaller factor may help."""
        self.factor, self._row, self.skipped = self.factor / 2, 0, self.skipped + 1
        return self.factor >= LEAST

    def state(self) -> np.ndarray:
        """What a continued run needs."""
        return np.array([self.factor, self._row, self.skipped], np.float64)

    def load(self, state: np.ndarray) -> None:
        """Takes over a state."""
        self.factor, self._row, self.skipped = float(state[0]), int(state[1]), int(state[2])
