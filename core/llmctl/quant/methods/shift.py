"""Offsets of input channels (adaptive Shift): what is subtracted from the inputs of a linear, and made good by its bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BETA = 0.98
"""Weight of the mean so far."""


def moving_mean(batches: Sequence[NDArray[Any]], beta: float = BETA) -> NDArray[np.float64]:
    """Exponential moving average of the means of batches, each [I], with the bias of its start removed.

    Args:
        batches: The means, in order; at least one.
        beta: Weight of the mean so far.
    """
    mean = np.zeros_like(np.asarray(batches[0], np.float64))
    for batch in batches:
        mean = beta * mean + (1 - beta) * np.asarray(batch, np.float64)
    return np.asarray(mean / (1 - beta ** len(batches)))


def midpoint(low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.float64]:
    """The middle of the range of each channel."""
    return np.asarray((np.asarray(low, np.float64) + high) / 2)
