"""Codes of a linear: by GPTQ where held-out inputs show that it is better than rounding to nearest, else rounded.

Shape suffixes: T held-out tokens, I inputs, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.quant.methods import gptq, paddleslim
from llmctl.quant.methods.grids import Grid, fit

Array = NDArray[Any]

FEW_ROWS = 16
"""With fewer held-out rows nothing can be checked."""


@dataclass(frozen=True)
class Recipe:
    """How codes are chosen.

    Attributes:
        bits: 4 or 8.
        group: Inputs that share a scale; 0 = all.
        form: One of ``grids.FORMS``.
        search: Whether the range of each group is searched.
        gptq: Whether errors are passed on; otherwise weights are rounded to nearest.
        correction: How much of the error of the inputs is made good, 0 to 1.
        damping: Added to the diagonal of the Gram matrix, as a share of its mean; None = by the number of tokens.
        by_paddleslim: Whether PaddleSlim's GPTQ chooses the codes.
    """

    bits: int
    group: int
    form: str = "signed"
    search: bool = True
    gptq: bool = True
    correction: float = 0.5
    damping: float | None = None
    by_paddleslim: bool = False


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs of a linear.

    Attributes:
        tokens: Their number.
        gram_II: Sum of x x^T; None = not collected.
        missing_IK: What the outputs miss, as ``gptq.correct`` takes it; None = nothing.
        held_TI: Rows that are in no sum.
        wanted_TO: Outputs of the float model for these rows, without bias.
        times_KO: What ``missing_IK`` has yet to be multiplied with; None = nothing.
    """

    tokens: int
    gram_II: Array | None = None
    missing_IK: Array | None = None
    held_TI: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    wanted_TO: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    times_KO: Array | None = None

    def of(self, outputs: slice) -> Inputs:
        """The inputs of a linear that has only these outputs."""
        missing, times = self.missing_IK, self.times_KO
        if times is not None:
            times = times[:, outputs]
        elif missing is not None:
            missing = missing[:, outputs]
        return replace(self, missing_IK=missing, times_KO=times, wanted_TO=self.wanted_TO[:, outputs])


@dataclass(frozen=True)
class Chosen:
    """The codes of a linear.

    Attributes:
        grid: Scales and zero points.
        codes_IO: int16.
        how: ``gptq``, ``rounded``, or ``rounded (few tokens)``, ``rounded (better)`` where GPTQ was asked for.
        damping: What was added to the diagonal; 0 = rounded.
        rounded_error: Squared error of the held-out outputs by rounding to nearest, as a share of their squares; NaN = not measured.
        error: The same of these codes.
    """

    grid: Grid
    codes_IO: NDArray[np.int16]
    how: str
    damping: float
    rounded_error: float
    error: float


def choose(weight_IO: Array, inputs: Inputs, recipe: Recipe) -> Chosen:
    """The codes of a weight.

    Args:
        weight_IO: The weight.
        inputs: Its inputs.
        recipe: How codes are chosen.

    Raises:
        ValueError: The weight or the inputs are not finite.
    """
    plain = fit(weight_IO, recipe.bits, recipe.group, recipe.form)
    plain_codes = plain.codes(weight_IO)
    rounded = _error(plain.values(plain_codes), inputs)
    best = Chosen(plain, plain_codes, "rounded", 0.0, rounded, rounded)
    if inputs.gram_II is None or not inputs.tokens or len(inputs.held_TI) < FEW_ROWS:
        return _named(best, "rounded (few tokens)") if recipe.gptq else best
    if recipe.search:
        best = _better(best, _searched(weight_IO, np.diag(inputs.gram_II), recipe, inputs, rounded))
    if not recipe.gptq:
        return best
    damping = recipe.damping or gptq.damping_for(len(weight_IO), inputs.tokens)
    for factor in (1.0, 10.0):
        found = _by_gptq(weight_IO, inputs, recipe, damping * factor, rounded)
        if found.error < best.error:
            return found
    return _named(best, "rounded (better)")


def _by_gptq(weight_IO: Array, inputs: Inputs, recipe: Recipe, damping: float, rounded: float) -> Chosen:
    assert inputs.gram_II is not None
    factored = gptq.factor(inputs.gram_II, damping)
    if recipe.correction and inputs.missing_IK is not None:
        weight_IO = gptq.correct(weight_IO, inputs.missing_IK, factored, recipe.correction, inputs.times_KO)
    if recipe.by_paddleslim:
        codes_IO, scales_GO = paddleslim.gptq(weight_IO, inputs.gram_II, recipe.bits, recipe.group, factored.damping)
        scales_GO = scales_GO.astype(np.float16).astype(np.float32)
        grid = Grid(recipe.bits, recipe.group or len(weight_IO), scales_GO, np.zeros_like(scales_GO))
    else:
        importance_I = np.diag(inputs.gram_II) if recipe.search else None
        grid = fit(weight_IO, recipe.bits, recipe.group, recipe.form, importance_I)
        codes_IO = gptq.round_weight(weight_IO.astype(np.float32), grid, factored)
    return Chosen(grid, codes_IO, "gptq", factored.damping, rounded, _error(grid.values(codes_IO), inputs))


def _searched(weight_IO: Array, importance_I: Array, recipe: Recipe, inputs: Inputs, rounded: float) -> Chosen:
    grid = fit(weight_IO, recipe.bits, recipe.group, recipe.form, importance_I)
    codes_IO = grid.codes(weight_IO)
    return Chosen(grid, codes_IO, "rounded", 0.0, rounded, _error(grid.values(codes_IO), inputs))


def _better(one: Chosen, other: Chosen) -> Chosen:
    return other if other.error < one.error else one


def _named(chosen: Chosen, how: str) -> Chosen:
    return Chosen(chosen.grid, chosen.codes_IO, how, chosen.damping, chosen.rounded_error, chosen.error)


def _error(values_IO: Array, inputs: Inputs) -> float:
    if not len(inputs.held_TI):
        return float("nan")
    off_TO = inputs.held_TI @ values_IO
    off_TO -= inputs.wanted_TO
    return _squares(off_TO) / (_squares(inputs.wanted_TO) or 1.0)


def _squares(values_TO: Array) -> float:
    return float(np.einsum("to,to->t", values_TO, values_TO).sum(dtype=np.float64))
