"""RMSNorm; differentiable in the input and the weight."""

from __future__ import annotations

import math

import paddle

from llmctl_ops import library, reference
from llmctl_ops.calling import FLOAT, POINTER, SIZE, done, fits, pointer, wanted


def rms_norm(x: paddle.Tensor, weight: paddle.Tensor, eps: float) -> paddle.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis.

    Raises:
        ValueError: The weight is not as wide as x.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm of {x.shape} needs a weight {x.shape[-1:]}, not {weight.shape}")
    if not fits(x, weight):
        return reference.rms_norm(x, weight, eps)
    if wanted(x, weight):
        return _RMSNorm.apply(x, weight, eps)
    return _forward(x.contiguous(), weight, eps, None)


class _RMSNorm(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, weight, eps):
        ctx.wanted = not x.stop_gradient, not weight.stop_gradient
        x = x.contiguous()
        scale = paddle.empty(x.shape[:-1], "float32")
        ctx.save_for_backward(x, weight, scale)
        return _forward(x, weight, eps, scale)

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensor()
        grad, grad_x, grad_weight = grad.contiguous(), paddle.empty_like(x), paddle.empty_like(weight)
        kernel = library.load().kernel("rms_norm_backward", *[POINTER] * 6, SIZE, SIZE)
        tensors = [pointer(t) for t in (x, weight, scale, grad, grad_x, grad_weight)]
        done(kernel(*tensors, *_rows(x)))
        return grad_x if ctx.wanted[0] else None, grad_weight if ctx.wanted[1] else None


def _forward(x: paddle.Tensor, weight: paddle.Tensor, eps: float, scale: paddle.Tensor | None) -> paddle.Tensor:
    out = paddle.empty_like(x)
    kernel = library.load().kernel("rms_norm_forward", *[POINTER] * 4, SIZE, SIZE, FLOAT)
    done(kernel(pointer(x), pointer(weight), pointer(out), pointer(scale), *_rows(x), eps))
    return out


def _rows(x: paddle.Tensor) -> tuple[int, int]:
    *leading, width = x.shape
    return math.prod(leading), width
