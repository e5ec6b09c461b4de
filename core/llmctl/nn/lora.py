"""A linear layer with a LoRA adapter, DoRA's magnitude and PiSSA's initial values.

Adapters on disk are in ``llmctl.adapters``. The base may be any layer with ``weight`` [in, out] and ``bias``, quantized
ones included.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
from paddle.nn import functional as F
from paddle.nn.initializer import Constant, Uniform

from llmctl.nn.arrays import assign, to_numpy

Total = Callable[[paddle.Tensor], paddle.Tensor]


class LoraLinear(paddle.nn.Layer):
    """base(x) + scale * dropout(x) A B, with a frozen base; with a magnitude, DoRA: each column of the adapted weight is
    normalized to its magnitude.

    A is uniform within 1/sqrt(inputs) and B zero, so that the layer computes what its base does before training.

    Args:
        base: The layer to adapt; its parameters are frozen.
        rank: Columns of A.
        scale: Factor of A B.
        dropout: Probability of dropout on the adapter's input, in training.
        magnitude: Whether there is a magnitude (DoRA), a vector that begins as the column norms of the base.
        total: Completes sums over inputs where the base has only some of them; None = it has all.

    Attributes:
        disabled: Whether the adapter is disabled, so that the layer computes what it did before training.
        initial_A: A that was subtracted from the base before training (PiSSA); None = nothing was.
        initial_B: B that was subtracted.
    """

    disabled = False

    def __init__(
        self,
        base: paddle.nn.Layer,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        magnitude: bool = False,
        total: Total | None = None,
    ) -> None:
        super().__init__()
        self._total = total
        self.base, self.scale, self.dropout = base, scale, dropout
        weight = base.weight
        (inputs, outputs), dtype = weight.shape, weight.dtype
        for parameter in base.parameters():
            parameter.stop_gradient = True
        self.lora_A = self.create_parameter([inputs, rank], dtype=dtype, default_initializer=first_a(inputs))
        self.lora_B = self.create_parameter([rank, outputs], dtype=dtype, default_initializer=Constant(0.0))
        self.lora_magnitude = self.initial_A = self.initial_B = None
        self._cached_norms: paddle.Tensor | None = None
        if magnitude:
            self.lora_magnitude = self.create_parameter([outputs], dtype=dtype, default_initializer=Constant(1.0))
            self.lora_magnitude.set_value(self._norms_of(weight))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if self.disabled:
            y = self.base(x)
            return y if self.initial_A is None else y + self._delta(x, self.initial_A, self.initial_B)
        dropped = F.dropout(x, self.dropout, training=self.training) if self.dropout else x
        y = self.base(x)
        # Sums are written over one of their terms: a tensor that is freed at once leaves a hole that the heap of the C
        # library seldom fills, as paddle asks for whole pages.
        if self.lora_magnitude is None:
            return y.add_(self._delta(dropped, self.lora_A, self.lora_B))
        without_bias = y if dropped is x else self.base(dropped)
        if self.base.bias is not None:
            without_bias = without_bias - self.base.bias
        rest = self.base.bias if dropped is x else y - without_bias
        adapted = without_bias.add_(self._delta(dropped, self.lora_A, self.lora_B))
        scaled = adapted * (self.lora_magnitude / self._column_norms())
        return scaled if rest is None else scaled.add_(rest)

    def _delta(self, x: paddle.Tensor, a: paddle.Tensor, b: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(paddle.matmul(x, a) * self.scale, b)

    @paddle.no_grad()
    def _column_norms(self) -> paddle.Tensor:
        """Column norms of the adapted weight, a constant for gradients (https://arxiv.org/abs/2402.09353, 4.3)."""
        if self._cached_norms is not None and not self.training:
            return self._cached_norms
        return self._norms_of(paddle.matmul(self.lora_A, self.lora_B).scale_(self.scale).add_(self.base.weight))

    @paddle.no_grad()
    def _norms_of(self, weight: paddle.Tensor) -> paddle.Tensor:
        squares = (weight * weight).sum(axis=0)
        return (squares if self._total is None else self._total(squares)).sqrt()

    def cache_magnitude(self) -> None:
        """Caches DoRA's column norms for inference; valid until ``set_weights``, while A, B and the base do not change."""
        if self.lora_magnitude is not None:
            self._cached_norms = self._column_norms()

    @paddle.no_grad()
    def set_weights(self, a: np.ndarray, b: np.ndarray, magnitude: np.ndarray | None = None) -> None:
        """Sets A [inputs, rank], B [rank, outputs] and, for DoRA, the magnitude [outputs]."""
        self._cached_norms = None
        assign(self.lora_A, a)
        assign(self.lora_B, b)
        if self.lora_magnitude is not None:
            assert magnitude is not None
            assign(self.lora_magnitude, magnitude)

    @paddle.no_grad()
    def subtract_from_base(self, a: np.ndarray, b: np.ndarray) -> None:
        """Subtracts scale * A B from the base's weight, and keeps both unrounded."""
        weight = self.base.weight
        values = to_numpy(weight)
        assign(weight, values - self.scale * (a @ b))
        self.initial_A, self.initial_B = (self._frozen(part.astype(values.dtype)) for part in (a, b))

    def _frozen(self, values: np.ndarray) -> paddle.Tensor:
        made = self.create_parameter(values.shape, dtype=values.dtype.name, default_initializer=Constant(0.0))
        made.set_value(values)
        made.stop_gradient = True
        return made


def first_a(inputs: int) -> Uniform:
    """The initial values of A for a layer with a number of inputs: uniform within 1/sqrt(inputs)."""
    return Uniform(-(inputs**-0.5), inputs**-0.5)


def pissa_init(weight: np.ndarray, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """A and B whose product times the scale is the best approximation of a weight [in, out] of this rank.

    PiSSA trains them while the base keeps the residual (https://arxiv.org/abs/2404.02948).
    """
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    roots = np.sqrt(values[:rank] / scale)
    return left[:, :rank] * roots, roots[:, None] * right[:rank]
