"""A linear layer with a frozen weight in 8 or 4 bits; gradients flow through it to its input (QLoRA).

The weight is dequantized in each forward and each backward pass and never kept. The codes are in ``blockwise``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import paddle
from paddle.autograd import PyLayer

from llmctl.nn.arrays import to_numpy
from llmctl.quant import GROUP
from llmctl.quant.blockwise import byte_values, quantise


class QuantisedLinear(paddle.nn.Layer):
    """y = x W + b with a quantized W.

    Args:
        linear: The layer to quantize; its bias is kept.
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
        """The dequantized weight [in, out], computed at each access."""
        return self.transposed().t()

    @paddle.no_grad()
    def transposed(self) -> paddle.Tensor:
        """The dequantized weight [out, in], the layout of the codes."""
        outputs, groups = self.scales.shape
        if self.code == "int8":
            values = self.codes.astype("float32") / 127
        else:
            values = paddle.nn.functional.embedding(self.codes.astype("int32"), _table(self.code))
        # Broadcasting over an inner axis is slow on the CPU; broadcasting a column is not.
        values = values.reshape([outputs * groups, GROUP]) * self.scales.reshape([-1, 1])
        return values.reshape([outputs, groups * GROUP])[:, : self.inputs].astype(self.dtype)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = _Frozen.apply(x, self)
        return y if self.bias is None else y + self.bias


@cache
def _table(code: str) -> paddle.Tensor:
    return paddle.to_tensor(byte_values(code))


class _Frozen(PyLayer):
    """x W, with a gradient for x alone. The context keeps only the layer, whose codes are frozen."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, layer: QuantisedLinear) -> paddle.Tensor:
        ctx.layer = layer
        return paddle.matmul(x, layer.transposed(), transpose_y=True)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(grad, ctx.layer.transposed())


def weight_bytes(model: paddle.nn.Layer) -> int:
    """Bytes of all parameters and buffers of a model."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    return sum(int(t.size) * t.element_size() for t in tensors)
