"""A layer with a low-rank adapter beside it, and the ways to begin training one.

What stands in the adapter's place on disk is in ``llmctl.adapters``. The base may be any layer with ``weight`` [in, out]
and ``bias``, quantised ones included.
"""

from __future__ import annotations

import numpy as np
import paddle
from paddle.nn import functional as F
from paddle.nn.initializer import Constant, Uniform

from llmctl.nn.arrays import put, values


class LoraLinear(paddle.nn.Layer):
    """base(x) + scale * dropout(x) A B; with lengths, each column of the adapted weight has the length given (DoRA).

    A is uniform within 1/sqrt(inputs) and B zero, so that it begins as its base. The base does not move.

    Args:
        base: The layer that this one stands for.
        rank: Columns of A.
        scale: Factor of A B.
        dropout: Part of x that A does not see, in training.
        lengths: Whether there is a vector of lengths; it begins as that of the base.

    Attributes:
        at_rest: Whether the layer computes what it did before any training.
        start: A and B of the part that was taken out of the base before training, if any was.
    """

    at_rest = False
    start: tuple[paddle.Tensor, paddle.Tensor] | None = None

    def __init__(
        self, base: paddle.nn.Layer, rank: int, scale: float, dropout: float = 0.0, lengths: bool = False
    ) -> None:
        super().__init__()
        self.base, self.scale, self.dropout = base, scale, dropout
        weight = base.weight
        (inputs, outputs), dtype = weight.shape, weight.dtype
        for parameter in base.parameters():
            parameter.stop_gradient = True
        bound = inputs**-0.5
        self.lora_A = self.create_parameter([inputs, rank], dtype=dtype, default_initializer=Uniform(-bound, bound))
        self.lora_B = self.create_parameter([rank, outputs], dtype=dtype, default_initializer=Constant(0.0))
        self.lora_magnitude = None
        self._settled: paddle.Tensor | None = None
        if lengths:
            self.lora_magnitude = self.create_parameter([outputs], dtype=dtype, default_initializer=Constant(1.0))
            self.lora_magnitude.set_value(_lengths(weight))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if self.at_rest:
            return self.base(x) if self.start is None else self.base(x) + self._change(x, *self.start)
        low = F.dropout(x, self.dropout, training=self.training) if self.dropout else x
        change = self._change(low, self.lora_A, self.lora_B)
        y = self.base(x)
        if self.lora_magnitude is None:
            return y + change
        straight = y if low is x else self.base(low)
        if self.base.bias is not None:
            straight = straight - self.base.bias
        factor = self.lora_magnitude / self._lengths()
        return y + (factor - 1) * straight + factor * change

    def _change(self, x: paddle.Tensor, a: paddle.Tensor, b: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(paddle.matmul(x, a) * self.scale, b)

    @paddle.no_grad()
    def _lengths(self) -> paddle.Tensor:
        """Lengths of the adapted weight's columns, a constant for gradients (https://arxiv.org/abs/2402.09353, 4.3)."""
        if self._settled is not None and not self.training:
            return self._settled
        return _lengths(self.base.weight + paddle.matmul(self.lora_A, self.lora_B) * self.scale)

    def settle(self) -> None:
        """Keeps the lengths for inference, where A, B and the base stand still until `take` is called."""
        if self.lora_magnitude is not None:
            self._settled = self._lengths()

    @paddle.no_grad()
    def take(self, a: np.ndarray, b: np.ndarray, magnitude: np.ndarray | None = None) -> None:
        """Sets A [inputs, rank], B [rank, outputs] and the lengths [outputs] where there are any."""
        self._settled = None
        put(self.lora_A, a)
        put(self.lora_B, b)
        if self.lora_magnitude is not None:
            assert magnitude is not None
            put(self.lora_magnitude, magnitude)

    @paddle.no_grad()
    def subtract(self, a: np.ndarray, b: np.ndarray) -> None:
        """Takes scale * A B out of the base's weight."""
        weight = self.base.weight
        put(weight, values(weight) - self.scale * (a @ b))


def _lengths(weight: paddle.Tensor) -> paddle.Tensor:
    return (weight * weight).sum(axis=0).sqrt()


def principal(weight: np.ndarray, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """A and B whose product times the scale is the best approximation of a weight [in, out] of this rank.

    PiSSA trains them while the base keeps the rest (https://arxiv.org/abs/2404.02948).
    """
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    roots = np.sqrt(values[:rank] / scale)
    return left[:, :rank] * roots, roots[:, None] * right[:rank]
