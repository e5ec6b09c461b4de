"""A linear layer with a frozen weight in 8 or 4 bits; gradients flow through it to its input (QLoRA).

The weight is dequantized in each forward and each backward pass and never kept. The codes are in ``packed``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import paddle
from paddle.autograd import PyLayer

from llmctl.quant.packed import Packed


class QuantizedLinear(paddle.nn.Layer):
    """y = x W + b with a quantized W.

    Args:
        linear: The layer whose weight is quantized; its bias is kept.
        packed: The weight.
    """

    def __init__(self, linear: paddle.nn.Layer, packed: Packed) -> None:
        super().__init__()
        self.dtype = linear.weight.dtype
        self.inputs, self.levels, self.steps, self.rounded = packed.inputs, packed.levels, packed.steps, packed.dtype
        for name in ("codes", "scales", "zeros", "columns"):
            array = getattr(packed, name)
            self.register_buffer(name, None if array is None else paddle.to_tensor(array))
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
        if self.levels:
            values = paddle.nn.functional.embedding(self.codes.astype("int32"), _table(self.levels))
        else:
            values = self.codes.astype("float32")
            values = values if self.steps == 1 else values / self.steps
        # Broadcasting over an inner axis is slow on the CPU; broadcasting a column is not.
        values = values.reshape([outputs * groups, -1])
        if self.zeros is not None:
            values = values + self.zeros.astype("float32").reshape([-1, 1])
        values = (values * self.scales.astype("float32").reshape([-1, 1])).reshape([outputs, -1])
        if self.columns is not None:
            return paddle.index_select(values, self.columns, axis=1).astype(self.rounded).astype(self.dtype)
        return values[:, : self.inputs].astype(self.rounded).astype(self.dtype)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if paddle.in_dynamic_mode() and paddle.is_grad_enabled():
            y = _Frozen.apply(x, self)
        else:
            y = paddle.matmul(x, self.transposed(), transpose_y=True)
        return y if self.bias is None else y + self.bias


def _table(levels: tuple[float, ...]) -> paddle.Tensor:
    """The two values of each byte [256, 2]; in a program that is traced, computed by it."""
    return _kept(levels) if paddle.in_dynamic_mode() else _computed(levels)


def _computed(levels: tuple[float, ...]) -> paddle.Tensor:
    byte, values = paddle.arange(256), paddle.to_tensor(levels, dtype="float32")
    return paddle.stack([paddle.gather(values, code) for code in (byte % 16, byte // 16)], axis=1)


_kept = cache(_computed)


class _Frozen(PyLayer):
    """x W, with a gradient for x alone. The context keeps only the layer, whose codes are frozen."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, layer: QuantizedLinear) -> paddle.Tensor:
        ctx.layer = layer
        return paddle.matmul(x, layer.transposed(), transpose_y=True)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(grad, ctx.layer.transposed())


def weight_bytes(model: paddle.nn.Layer) -> int:
    """Bytes of all parameters and buffers of a model."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    return sum(int(t.size) * t.element_size() for t in tensors)
