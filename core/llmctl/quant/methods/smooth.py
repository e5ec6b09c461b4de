"""Scales of input channels for 8-bit activations: SmoothQuant, and PieceWiseSearch of PaddleSlim.

Inputs are divided by the scales, and the rows of the weight multiplied. All linears of a stage are one weight here, joined along
their outputs. Shape suffixes: T tokens, I inputs, O outputs of all linears of a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LEAST_SCALE = 1e-5
ALPHAS, CONSTANTS = (0.2, 0.8, 0.01), (1.0, 5.0, 0.5)
"""First, last and step of what a search tries."""

ROUNDS = 300
"""Of clustering, at most."""


def smooth_scale(largest_I: Array, weight_largest_I: Array, alpha: float) -> NDArray[np.float64]:
    """max|x|^alpha / max|w|^(1 - alpha) of each input; 1 for inputs or rows of zeros.

    Args:
        largest_I: max|x|.
        weight_largest_I: max|w| over the outputs.
        alpha: Share of the difficulty that moves into the weight.
    """
    x_I, w_I = np.asarray(largest_I, np.float64), np.asarray(weight_largest_I, np.float64)
    used = (x_I > 0) & (w_I > 0)
    scale_I = np.ones(len(x_I))
    scale_I[used] = np.maximum(x_I[used] ** alpha / w_I[used] ** (1 - alpha), LEAST_SCALE)
    return scale_I


def w8a8_loss(
    x_TI: Array,
    weight_IO: Array,
    scale_I: Array,
    bits: int = 8,
    wanted_TO: Array | None = None,
    largest_I: Array | None = None,
) -> float:
    """Mean squared error of the outputs, of inputs with one scale and weights with a scale for each output.

    Args:
        x_TI: The inputs.
        weight_IO: The weight.
        scale_I: What inputs are divided by.
        bits: Of both.
        wanted_TO: x W, where it is known.
        largest_I: max|x| of all inputs there are, where x is a part of them; larger values are clipped.
    """
    most = 2 ** (bits - 1) - 1
    x = x_TI / scale_I
    w = weight_IO * scale_I[:, None]
    x_unit = (np.abs(x) if largest_I is None else largest_I / scale_I).max() or 1e-8
    w_unit = np.abs(w).max(0)
    w_unit = np.where(w_unit == 0, 1e-8, w_unit)
    x = np.clip(np.rint(x / x_unit * most), -most - 1, most) / most * x_unit
    w = np.clip(np.rint(w / w_unit * most), -most - 1, most) / most * w_unit
    wanted_TO = x_TI @ weight_IO if wanted_TO is None else wanted_TO
    return float(((wanted_TO - x @ w) ** 2).mean())


def candidates() -> list[float]:
    """What a search tries: values of alpha below 1, then constant scales."""
    low, high, step = ALPHAS
    alphas = [round(low + step * number, 2) for number in range(1, round((high - low) / step))]
    first, last, pace = CONSTANTS
    constants = [round(first + pace * number, 2) for number in range(round((last - first) / pace) + 2)]
    return [*alphas, *constants]


def pieces(largest_I: Array, count: int) -> NDArray[np.int64]:
    """The piece of each input, 0 = the least: k-means of max|x| from quantiles, so that the same inputs have the same pieces."""
    values = np.asarray(largest_I, np.float64)
    centers = np.quantile(values, (np.arange(count) + 0.5) / count)
    piece_I = np.zeros(len(values), np.int64)
    for _ in range(ROUNDS):
        piece_I = np.abs(values[:, None] - centers).argmin(1)
        moved = np.array([values[piece_I == k].mean() if (piece_I == k).any() else centers[k] for k in range(count)])
        if np.array_equal(moved, centers):
            break
        centers = moved
    order = np.argsort(centers, kind="stable")
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    return rank[piece_I]


def search(
    loss: Callable[[Array], float],
    scale_of: Callable[[float], Array],
    piece_I: Array,
    tried: Sequence[float] | None = None,
) -> tuple[NDArray[np.float64], list[float]]:
    """PieceWiseSearch: the best scale of each piece, from the least to the largest; pieces that are not searched yet stay at 1.

    Args:
        loss: Loss of scales [I].
        scale_of: Scales [I] of a value of alpha.
        piece_I: The piece of each input, from ``pieces``.
        tried: Values of alpha, and constant scales from 1; None = ``candidates()``.

    Returns:
        The scales, and what was chosen for each piece; of equals the last one is chosen.
    """
    scale_I, chosen = np.ones(len(piece_I)), []
    for piece in range(int(piece_I.max()) + 1):
        inside = piece_I == piece
        if not inside.any():
            continue
        best = (np.inf, scale_I, 1.0)
        for value in candidates() if tried is None else tried:
            trial_I = scale_I.copy()
            trial_I[inside] = scale_of(value)[inside] if value < 1 else value
            found = loss(trial_I)
            if found <= best[0]:
                best = (found, trial_I, value)
        scale_I = best[1]
        chosen.append(best[2])
    return scale_I, chosen
