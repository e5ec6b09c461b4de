"""What methods need to know of the inputs of a linear, collected batch by batch. Shape suffixes: T tokens, I inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HELD_ROWS = 1024
"""Rows that are kept for checks, at most."""

STRIP = 256
"""Rows of a Gram matrix that are computed by one product; what is left of them follows by symmetry."""


class Products:
    """Sums of products of the inputs x of a linear with weight w, and of x with what its outputs miss.

    Args:
        weight_IO: w.
        missing: Whether what the outputs miss is collected.

    Attributes:
        tokens: Number of tokens, without those held out.
        missing_IK: Sum of x (x' - x)^T, x' = inputs in the float model; or that of x (x' w - x w)^T, where that takes fewer
            operations. float64; None = not collected.
        times_KO: The weight, which ``missing_IK`` has yet to be multiplied with; None = it was.
    """

    def __init__(self, weight_IO: Array, missing: bool) -> None:
        inputs, outputs = weight_IO.shape
        self._weight_IO, self._early = weight_IO, inputs > 2 * outputs
        self.tokens, self._upper_II = 0, np.zeros((inputs, inputs))
        self.missing_IK = np.zeros((inputs, outputs if self._early else inputs)) if missing else None
        self.times_KO = weight_IO if missing and not self._early else None

    def add(self, x_TI: Array, float_x_TI: Array) -> None:
        """Adds a batch: inputs in the quantized model, and in the float model.

        Raises:
            ValueError: A value is not finite; names the input.
        """
        if not len(x_TI):
            return
        self.tokens += len(x_TI)
        for start in range(0, x_TI.shape[1], STRIP):
            rows = slice(start, start + STRIP)
            self._upper_II[rows, start:] += x_TI[:, rows].T @ x_TI[:, start:]
        # A value that is not finite makes its square on the diagonal so.
        _check_finite(np.diag(self._upper_II))
        if self.missing_IK is not None:
            off_TK = float_x_TI - x_TI
            self.missing_IK += x_TI.T @ (off_TK @ self._weight_IO if self._early else off_TK)

    @property
    def gram_II(self) -> Array:
        """Sum of x x^T, float64."""
        for start in range(0, len(self._upper_II), STRIP):
            stop = start + STRIP
            self._upper_II[stop:, start:stop] = self._upper_II[start:stop, stop:].T
        return self._upper_II


class InputStatistics:
    """Sums over the inputs of a linear.

    Args:
        inputs: I.

    Attributes:
        tokens: Number of tokens, without those held out.
        largest_I: Largest magnitudes.
        magnitude_I: Sum of magnitudes.
        low_I: Smallest values.
        high_I: Largest values.
        mean_batches: Mean of each batch [I].
    """

    def __init__(self, inputs: int) -> None:
        self.tokens = 0
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
        _check_finite(largest_I)
        self.largest_I = np.maximum(self.largest_I, largest_I)
        self.magnitude_I += magnitudes_TI.sum(0, dtype=np.float64)
        self.low_I, self.high_I = np.minimum(self.low_I, x_TI.min(0)), np.maximum(self.high_I, x_TI.max(0))
        self.mean_batches.append(x_TI.mean(0, dtype=np.float64))

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


def _check_finite(values_I: Array) -> None:
    if not np.isfinite(values_I).all():
        raise ValueError(
            f"input {int(np.flatnonzero(~np.isfinite(values_I))[0])} is not finite on this text: what the model computes before it overflows"
        )
