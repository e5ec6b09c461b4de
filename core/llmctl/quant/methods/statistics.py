"""What methods need to know of the inputs of a linear, collected batch by batch. Shape suffixes: T tokens, I inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HELD_ROWS = 1024
"""Rows that are kept for checks, at most."""


class InputStatistics:
    """Sums over the inputs of a linear.

    Args:
        inputs: I.
        gram: Whether the Gram matrix is collected.

    Attributes:
        tokens: Number of tokens, without those held out.
        gram_II: Sum of x x^T, float64; None = not collected.
        largest_I: Largest magnitudes.
        magnitude_I: Sum of magnitudes.
        low_I: Smallest values.
        high_I: Largest values.
        mean_batches: Mean of each batch [I].
    """

    def __init__(self, inputs: int, gram: bool = True) -> None:
        self.tokens = 0
        self.gram_II = np.zeros((inputs, inputs)) if gram else None
        self.largest_I, self.magnitude_I = np.zeros(inputs), np.zeros(inputs)
        self.low_I, self.high_I = np.full(inputs, np.inf), np.full(inputs, -np.inf)
        self.mean_batches: list[Array] = []

    def add(self, x_TI: Array) -> None:
        """Adds a batch.

        Raises:
            ValueError: A value is not finite; names the input.
        """
        if not len(x_TI):
            return
        self.tokens += len(x_TI)
        magnitudes_TI = np.abs(x_TI)
        largest_I = magnitudes_TI.max(0)
        if not np.isfinite(largest_I).all():
            raise ValueError(f"input {int(np.flatnonzero(~np.isfinite(largest_I))[0])} is not finite")
        self.largest_I = np.maximum(self.largest_I, largest_I)
        self.magnitude_I += magnitudes_TI.sum(0, dtype=np.float64)
        self.low_I, self.high_I = np.minimum(self.low_I, x_TI.min(0)), np.maximum(self.high_I, x_TI.max(0))
        self.mean_batches.append(x_TI.mean(0, dtype=np.float64))
        if self.gram_II is not None:
            self.gram_II += x_TI.T @ x_TI

    @property
    def mean_magnitude_I(self) -> Array:
        """Mean magnitude of each input; zeros without tokens."""
        return self.magnitude_I / max(self.tokens, 1)


class HeldRows:
    """Rows that are kept for checks: at most so many, evenly from all that were offered.

    Args:
        most: Their number at most.
    """

    def __init__(self, most: int = HELD_ROWS) -> None:
        self._most, self._kept, self._step = most, list[tuple[Array, ...]](), 1
        self._seen = 0

    def add(self, *rows: Array) -> None:
        """Offers rows of several arrays that belong together."""
        for index in range(len(rows[0])):
            if self._seen % self._step == 0:
                self._kept.append(tuple(np.array(array[index]) for array in rows))
            self._seen += 1
            if len(self._kept) > self._most:
                self._kept, self._step = self._kept[::2], 2 * self._step

    def arrays(self, count: int) -> tuple[Array, ...]:
        """The rows of each of ``count`` arrays; empty ones without any."""
        if not self._kept:
            return tuple(np.zeros((0, 0), np.float32) for _ in range(count))
        return tuple(np.stack([row[number] for row in self._kept]) for number in range(count))

    def __len__(self) -> int:
        return len(self._kept)
