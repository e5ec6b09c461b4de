"""Activations of one input; differentiable. SwiGLU is in ``gate``."""

from __future__ import annotations

import math

import paddle

from llmctl_ops import reference
from llmctl_ops.calling import call, fits, needs_grad


def gelu_tanh(x: paddle.Tensor) -> paddle.Tensor:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    if not fits(x):
        return reference.gelu_tanh(x)
    return _GeluTanh.apply(x) if needs_grad(x) else _forward(x)


class _GeluTanh(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return _forward(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensor()
        grad_x = paddle.empty_like(x)
        call("gelu_tanh_backward", (x, grad), (grad_x,), (math.prod(x.shape),))
        return grad_x


def _forward(x: paddle.Tensor) -> paddle.Tensor:
    out = paddle.empty_like(x)
    call("gelu_tanh_forward", (x,), (out,), (math.prod(x.shape),))
    return out
