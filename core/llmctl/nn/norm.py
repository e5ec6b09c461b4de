"""Normalization layers. Statistics are computed in float32 or better, whatever the input's type."""

from __future__ import annotations

import paddle
from paddle.nn.initializer import Constant

from llmctl.nn import kernels


class RMSNorm(paddle.nn.Layer):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (https://arxiv.org/abs/1910.07467).

    Args:
        hidden: Hidden size.
        eps: Added to the mean square.
    """

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.weight = self.create_parameter([hidden], default_initializer=Constant(1.0))
        self.eps = eps

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(paddle.nn.LayerNorm):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (https://arxiv.org/abs/1607.06450).

    Args:
        hidden: Hidden size.
        eps: Added to the variance.
    """

    def __init__(self, hidden: int, eps: float = 1e-5) -> None:
        super().__init__(hidden, epsilon=eps)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        fused = kernels.compiled("layer_norm", x, self.weight, self.bias)
        return super().forward(x) if fused is None else fused(x, self.weight, self.bias, self._epsilon)


def rms_norm(x: paddle.Tensor, weight: paddle.Tensor, eps: float) -> paddle.Tensor:
    """``RMSNorm`` as a function; the result has the type of x."""
    fused = kernels.compiled("rms_norm", x, weight)
    if fused is not None:
        return fused(x, weight, eps)
    wide = x.astype("float32") if x.dtype in (paddle.float16, paddle.bfloat16) else x
    if wide is not x or not paddle.in_dynamic_mode():
        return _unit(wide, eps)[0].astype(x.dtype) * weight
    return _RMSNorm.apply(x, weight, eps)


def _unit(x: paddle.Tensor, eps: float) -> tuple[paddle.Tensor, paddle.Tensor]:
    """x divided by the root of its mean square, and the factor [..., 1]."""
    scale = paddle.rsqrt(_mean(x * x) + eps)
    return x * scale, scale


def _mean(x: paddle.Tensor) -> paddle.Tensor:
    """Mean over the last axis, kept as size 1; a product with a column is the fastest sum on the CPU."""
    if paddle.is_compiled_with_cuda():
        # In mixed precision a product would be computed in a half type.
        return x.mean(axis=-1, keepdim=True)
    width = x.shape[-1]
    return paddle.matmul(x, paddle.full([width, 1], 1 / width, x.dtype))


class _RMSNorm(paddle.autograd.PyLayer):
    """The norm with a hand-written gradient, which reads memory a sixth as often as the composed one."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        unit, scale = _unit(x, eps)
        ctx.save_for_backward(unit, scale, weight)
        ctx.needs_grad = (not x.stop_gradient, not weight.stop_gradient)
        return unit * weight

    @staticmethod
    def backward(ctx, grad):
        unit, scale, weight = ctx.saved_tensor()
        grad_x = grad_weight = None
        if ctx.needs_grad[0]:
            inner = grad * weight
            grad_x = (inner - unit * _mean(inner * unit)) * scale
        if ctx.needs_grad[1]:
            rows = (grad * unit).reshape([-1, unit.shape[-1]])
            grad_weight = paddle.matmul(paddle.ones([1, rows.shape[0]], rows.dtype), rows).reshape([-1])
        return grad_x, grad_weight
