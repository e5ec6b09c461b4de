"""Activations of one input; differentiable. The gate of two is in ``gate``."""

from __future__ import annotations

import math

import paddle

from llmctl_ops import library, reference
from llmctl_ops.calling import POINTER, SIZE, done, fits, pointer, wanted


def gelu_tanh(x: paddle.Tensor) -> paddle.Tensor:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    if not fits(x):
        return reference.gelu_tanh(x)
    return _GeluTanh.apply(x) if wanted(x) else _forward(x.contiguous())


class _GeluTanh(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        ctx.save_for_backward(x)
        return _forward(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensor()
        grad, grad_x = grad.contiguous(), paddle.empty_like(x)
        kernel = library.load().kernel("gelu_tanh_backward", *[POINTER] * 3, SIZE)
        done(kernel(pointer(x), pointer(grad), pointer(grad_x), math.prod(x.shape)))
        return grad_x


def _forward(x: paddle.Tensor) -> paddle.Tensor:
    out = paddle.empty_like(x)
    kernel = library.load().kernel("gelu_tanh_forward", *[POINTER] * 2, SIZE)
    done(kernel(pointer(x), pointer(out), math.prod(x.shape)))
    return out
