"""GPTQ (https://arxiv.org/abs/2210.17323): rounds a weight input by input, the most active first, each error made good by the
inputs that follow.

With H = V V^T of the inputs in this order, V upper triangular, the error of a weight is |V^T (w - q)|^2, so the weight that an input
is rounded to follows from the errors before it without an inverse of H. Groups are those of the grid, fixed before: the order needs
no permutation when the weight is used. Shape suffixes: I inputs, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.quant.methods.grids import Grid, nearest

Array = NDArray[Any]

BLOCK = 128
"""Inputs that errors of earlier blocks come to by one matrix product."""

ONE_BY_ONE = 16
"""Inputs of a block whose errors are passed on one by one; those of the others in it come by a product too."""

LEAST_DAMPING = 0.01
FEW_TOKENS = 0.15
"""Damping of as many tokens as inputs; fewer tokens need more."""

MOST_DAMPING = 1e4
"""A Gram matrix that is not positive definite with this much is not one."""


@dataclass(frozen=True)
class Factor:
    """A factored Gram matrix.

    Attributes:
        order_I: Inputs, the most active first.
        upper_II: V, in this order.
        damping: What was added to the diagonal, as a share of its mean.
        dead_I: Inputs that were always zero.
    """

    order_I: Array
    upper_II: Array
    damping: float
    dead_I: Array


def damping_for(inputs: int, tokens: float) -> float:
    """The damping for a weight of so many inputs that saw so many tokens."""
    return max(LEAST_DAMPING, FEW_TOKENS * inputs / max(tokens, 1.0))


def factor(gram_II: Array, damping: float = LEAST_DAMPING, by_activity: bool = True) -> Factor:
    """Factors a Gram matrix; the damping grows tenfold until that succeeds.

    Args:
        gram_II: Sum of x x^T over the tokens.
        damping: Added to the diagonal, as a share of its mean.
        by_activity: Whether the most active inputs come first; otherwise they stay in order.

    Raises:
        ValueError: The matrix is not finite, or never positive definite.
    """
    gram_II = np.asarray(gram_II, np.float64)
    diagonal_I = np.diag(gram_II)
    if not np.isfinite(gram_II).all():
        raise ValueError("the inputs are not finite")
    order_I = np.argsort(-diagonal_I, kind="stable") if by_activity else np.arange(len(gram_II))
    dead_I = diagonal_I <= 0
    mean = float(diagonal_I.mean())
    own_I = np.where(dead_I, max(mean, 1.0), diagonal_I)[order_I]
    places = np.arange(len(gram_II))
    while damping <= MOST_DAMPING:
        ordered_II = gram_II[np.ix_(order_I, order_I)]
        ordered_II[places, places] = own_I + damping * mean
        try:
            return Factor(order_I, _factor_upper(ordered_II), damping, dead_I)
        except np.linalg.LinAlgError:
            damping *= 10
    raise ValueError("the Gram matrix of the inputs is not positive definite, whatever is added to its diagonal")


def _factor_upper(matrix_II: Array) -> Array:
    """V of V V^T, upper triangular, in the memory of the matrix.

    Raises:
        LinAlgError: The matrix is not positive definite.
    """
    for start in reversed(range(0, len(matrix_II), BLOCK)):
        stop = min(start + BLOCK, len(matrix_II))
        matrix_II[:stop, start:stop] -= matrix_II[:stop, stop:] @ matrix_II[start:stop, stop:].T
        # numpy's factor is lower triangular: the upper one of the matrix turned round.
        own = np.linalg.cholesky(matrix_II[start:stop, start:stop][::-1, ::-1])[::-1, ::-1]
        matrix_II[start:stop, start:stop] = own
        matrix_II[:start, start:stop] = matrix_II[:start, start:stop] @ np.linalg.inv(own).T
        matrix_II[start:stop, :start] = 0
    return matrix_II


def round_weight(weight_IO: Array, grid: Grid, factored: Factor) -> NDArray[np.int16]:
    """The codes of a weight [I, O], computed in its type.

    Args:
        weight_IO: The weight.
        grid: Its grid.
        factored: The Gram matrix of its inputs.
    """
    order_I = factored.order_I
    inputs, outputs = weight_IO.shape
    weight_IO = weight_IO[order_I]
    upper_II = factored.upper_II.astype(weight_IO.dtype, copy=False)
    diagonal_I = np.diag(upper_II)
    codes_IO = np.empty((inputs, outputs), np.int16)
    error_IO = np.empty_like(weight_IO)
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        carried = upper_II[:start, start:stop].T @ error_IO[:start]
        for first in range(start, stop, ONE_BY_ONE):
            last = min(first + ONE_BY_ONE, stop)
            for at in range(first, last):
                aim_O = weight_IO[at] + carried[at - start] / diagonal_I[at]
                scales_O, zeros_O = grid.rows(order_I[at])
                codes_IO[at] = nearest(aim_O, scales_O, zeros_O, grid.bits)
                error_IO[at] = weight_IO[at] - (codes_IO[at] + zeros_O) * scales_O
                carried[at - start + 1 : last - start] += np.outer(upper_II[at, at + 1 : last], error_IO[at])
            carried[last - start :] += upper_II[first:last, last:stop].T @ error_IO[first:last]
    inverse = np.empty_like(order_I)
    inverse[order_I] = np.arange(inputs)
    return codes_IO[inverse]


def correct(
    weight_IO: Array, missing_IK: Array, factored: Factor, strength: float, times_KO: Array | None = None
) -> NDArray[np.float64]:
    """The weight that makes good a part of the error of its inputs (https://arxiv.org/abs/2504.02692).

    Args:
        weight_IO: The weight; what is added is computed in its type.
        missing_IK: X^T (Y - X W): X the inputs that the quantized layers before give, Y the outputs for float inputs.
        factored: X^T X.
        strength: 1 = the weight of least squares, 0 = the weight itself.
        times_KO: The weight W, where ``missing_IK`` is X^T (X' - X) of the float inputs X' (Y = X' W): the solution is
            multiplied by it, which takes fewer operations if there are many outputs. None: ``missing_IK`` is as above.
    """
    order_I, upper_II = factored.order_I, factored.upper_II.astype(weight_IO.dtype, copy=False)
    solved = solve_upper(upper_II, missing_IK.astype(weight_IO.dtype, copy=False)[order_I])
    solved = solve_upper(upper_II, solved, transposed=True)
    solved *= strength
    added = np.empty_like(solved)
    added[order_I] = solved
    added[factored.dead_I] = 0
    if times_KO is not None:
        added = added @ times_KO
    return np.add(weight_IO, added, dtype=np.float64)


def solve_upper(upper_II: Array, right_IO: Array, transposed: bool = False) -> Array:
    """U^-1 B or U^-T B of an upper triangular U, block by block."""
    solved_IO, inputs = right_IO.copy(), len(upper_II)
    starts = range(0, inputs, BLOCK)
    for start in starts if transposed else reversed(starts):
        stop = min(start + BLOCK, inputs)
        inverse = np.linalg.inv(upper_II[start:stop, start:stop])
        if transposed:
            solved_IO[start:stop] -= upper_II[:start, start:stop].T @ solved_IO[:start]
            inverse = inverse.T
        else:
            solved_IO[start:stop] -= upper_II[start:stop, stop:] @ solved_IO[stop:]
        solved_IO[start:stop] = inverse @ solved_IO[start:stop]
    return solved_IO
