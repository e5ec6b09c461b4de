"""A linear layer whose weight is held in 8 or 4 bits and does not move; gradients pass through it to its input.

The weight is made floating again in every forward and again in every backward pass; neither keeps it. How it is coded is
in ``blockwise``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import paddle
from paddle.autograd import PyLayer

from llmctl.nn.arrays import to_numpy
from llmctl.quant.blockwise import GROUP, pairs, quantise


class QuantisedLinear(paddle.nn.Layer):
    """y = x W + b with W in codes.

    Args:
        linear: The layer that this one stands for; its bias is kept.
        code: One of ``blockwise.CODES``.
    """

    def __init__(self, linear: paddle.nn.Layer, code: str) -> None:
        super().__init__()
        packed = quantise(to_numpy(linear.weight), code)
        self.dtype = linear.weight.dtype
        self.inputs = packed.inputs
        self.register_buffer("codes", paddle.to_tensor(packed.codes))
        self.register_buffer("scales", paddle.to_tensor(packed.scales))
        self.code = code
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.stop_gradient = True

    @property
    def weight(self) -> paddle.Tensor:
        """The weight that the codes stand for [in, out], made anew each time."""
        return self.rows().t()

    @paddle.no_grad()
    def rows(self) -> paddle.Tensor:
        """The same transposed [out, in], which is how it is stored."""
        outputs, groups = self.scales.shape
        if self.code == "int8":
            values = self.codes.astype("float32") / 127
        else:
            values = paddle.nn.functional.embedding(self.codes.astype("int32"), _table(self.code))
        # Broadcasting over an inner axis is slow on the CPU; a column beside rows is not.
        values = values.reshape([outputs * groups, GROUP]) * self.scales.reshape([-1, 1])
        return values.reshape([outputs, groups * GROUP])[:, : self.inputs].astype(self.dtype)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = _Frozen.apply(x, self)
        return y if self.bias is None else y + self.bias


@cache
def _table(code: str) -> paddle.Tensor:
    return paddle.to_tensor(pairs(code))


class _Frozen(PyLayer):
    """x W, with a gradient for x alone. Nothing is kept but the layer: its codes stand still."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, layer: QuantisedLinear) -> paddle.Tensor:
        ctx.layer = layer
        return paddle.matmul(x, layer.rows(), transpose_y=True)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(grad, ctx.layer.rows())


def weight_bytes(model: paddle.nn.Layer) -> int:
    """Bytes of all parameters and buffers of a model."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    return sum(int(t.size) * t.element_size() for t in tensors)
