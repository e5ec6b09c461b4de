"""RMSNorm and LayerNorm; differentiable in the input, the weight and the bias."""

from __future__ import annotations

import math

import paddle

from llmctl_ops import reference
from llmctl_ops.calling import call, fits, needs_grad


def rms_norm(x: paddle.Tensor, weight: paddle.Tensor, eps: float) -> paddle.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis.

    Raises:
        ValueError: The weight is not as wide as x.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm of {x.shape} needs a weight {x.shape[-1:]}, not {weight.shape}")
    if not fits(x, weight):
        return reference.rms_norm(x, weight, eps)
    if needs_grad(x, weight):
        return _RMSNorm.apply(x, weight, eps)
    return _forward(x, weight, eps, None)


class _RMSNorm(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, weight, eps):
        ctx.needs_grad = not x.stop_gradient, not weight.stop_gradient
        scale = paddle.empty(x.shape[:-1], "float32")
        ctx.save_for_backward(x, weight, scale)
        return _forward(x, weight, eps, scale)

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensor()
        grad_x, grad_weight = paddle.empty_like(x), paddle.empty_like(weight)
        call("rms_norm_backward", (x, weight, scale, grad), (grad_x, grad_weight), _rows(x))
        return grad_x if ctx.needs_grad[0] else None, grad_weight if ctx.needs_grad[1] else None


def _forward(x: paddle.Tensor, weight: paddle.Tensor, eps: float, scale: paddle.Tensor | None) -> paddle.Tensor:
    out = paddle.empty_like(x)
    call("rms_norm_forward", (x, weight), (out, scale), _rows(x), (eps,))
    return out


def layer_norm(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, eps: float) -> paddle.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis.

    Raises:
        ValueError: The weight or the bias is not as wide as x.
    """
    if not weight.shape == bias.shape == x.shape[-1:]:
        raise ValueError(
            f"layer_norm of {x.shape} needs weight and bias {x.shape[-1:]}, not {weight.shape} and {bias.shape}"
        )
    if not fits(x, weight, bias):
        return reference.layer_norm(x, weight, bias, eps)
    if needs_grad(x, weight, bias):
        return _LayerNorm.apply(x, weight, bias, eps)
    return _layer_forward(x, weight, bias, eps, None)


class _LayerNorm(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        ctx.needs_grad = [not t.stop_gradient for t in (x, weight, bias)]
        moments = paddle.empty([*x.shape[:-1], 2], "float32")
        ctx.save_for_backward(x, weight, moments)
        return _layer_forward(x, weight, bias, eps, moments)

    @staticmethod
    def backward(ctx, grad):
        x, weight, moments = ctx.saved_tensor()
        grads = paddle.empty_like(x), paddle.empty_like(weight), paddle.empty_like(weight)
        call("layer_norm_backward", (x, weight, moments, grad), grads, _rows(x))
        return tuple(t if needed else None for t, needed in zip(grads, ctx.needs_grad, strict=True))


def _layer_forward(x, weight, bias, eps: float, moments: paddle.Tensor | None) -> paddle.Tensor:
    out = paddle.empty_like(x)
    call("layer_norm_forward", (x, weight, bias), (out, moments), _rows(x), (eps,))
    return out


def _rows(x: paddle.Tensor) -> tuple[int, int]:
    *leading, width = x.shape
    return math.prod(leading), width
