"""Scales of input channels for rounded weights: AWQ (https://arxiv.org/abs/2306.00978), with the weight's own term.

Inputs are divided by the scales, and the rows of the weight multiplied. Shape suffixes: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

RATIOS = tuple(round(0.05 * number, 2) for number in range(20))
TINY = 1e-4


def awq_scale(magnitude_I: Array, share_I: Array, ratio: float) -> NDArray[np.float64]:
    """mean|x|^ratio / share^(1 - ratio), with sqrt(max min) = 1; inputs that are always zero have 1.

    Args:
        magnitude_I: mean|x| of each input.
        share_I: How large the weights of each input are in their groups, from ``weight_share``.
        ratio: 0 to 1.
    """
    x_I = np.asarray(magnitude_I, np.float64)
    used = x_I > 0
    scale_I = np.ones(len(x_I))
    if used.any():
        found = np.maximum(x_I[used] ** ratio / (np.asarray(share_I)[used] ** (1 - ratio) + TINY), TINY)
        scale_I[used] = found / np.sqrt(found.max() * found.min())
    return scale_I


def weight_share(weight_IO: Array, group: int) -> NDArray[np.float64]:
    """Mean over the outputs of |w| as a share of the largest in its group, for each input."""
    inputs, outputs = weight_IO.shape
    size = group or inputs
    padded = np.pad(np.abs(weight_IO), ((0, -inputs % size), (0, 0))).reshape(-1, size, outputs)
    largest = padded.max(1, keepdims=True)
    return np.asarray((padded / np.where(largest == 0, 1, largest)).mean(-1).reshape(-1)[:inputs], np.float64)


def search(
    loss: Callable[[Array], float], scale_of: Callable[[float], Array], inputs: int
) -> tuple[NDArray[np.float64], float | None, float, float]:
    """The ratio of least loss.

    Args:
        loss: Loss of scales [I].
        scale_of: Scales [I] of a ratio.
        inputs: I.

    Returns:
        The scales, the ratio (None = no scales are better), and the loss without and with them.
    """
    none_I = np.ones(inputs)
    before = loss(none_I)
    best: tuple[float, Array, float | None] = (before, none_I, None)
    for ratio in RATIOS:
        scale_I = scale_of(ratio)
        found = loss(scale_I)
        if np.isfinite(found) and found < best[0]:
            best = (found, scale_I, ratio)
    return best[1], best[2], before, best[0]
