"""The AdamW update, and the sum of squares for the gradient norm. Neither is differentiable."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import paddle

from llmctl_ops import reference
from llmctl_ops.calling import call, fits


def adamw(
    weight: paddle.Tensor,
    grad: paddle.Tensor,
    moment1: paddle.Tensor,
    moment2: paddle.Tensor,
    lr: float,
    powers: tuple[float, float],
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """One in-place update of a weight and its moments (https://arxiv.org/abs/1711.05101), as in ``paddle.optimizer.AdamW``.

    Args:
        weight: Any shape, the same as of the other three.
        grad: Its gradient.
        moment1: First moment.
        moment2: Second moment.
        lr: Learning rate.
        powers: The betas to the power t at update t, which counts from 1.
        betas: Decay rates of the two moments.
        eps: Added to the square root of the second moment.
        weight_decay: Decoupled: ``lr * weight_decay * weight`` is subtracted.

    Raises:
        ValueError: The shapes differ.
    """
    tensors = (weight, grad, moment1, moment2)
    if any(x.shape != weight.shape for x in tensors):
        raise ValueError(f"adamw needs four tensors of one shape, not {[x.shape for x in tensors]}")
    # The kernel ignores strides, and here it writes.
    if not fits(*tensors) or not all(x.is_contiguous() for x in (weight, moment1, moment2)):
        return reference.adamw(*tensors, lr, powers, betas, eps, weight_decay)
    # Compensates the rounding of 1 - beta in the kernel, which is float32: 1e-5 of an update.
    correction1, correction2 = ((1 - power) * _rounding(beta) for power, beta in zip(powers, betas, strict=True))
    root = math.sqrt(correction2)
    factors = *betas, eps * root, lr * root / correction1, lr * weight_decay
    call("adamw", (grad,), (weight, moment1, moment2), (math.prod(weight.shape),), factors)


def _rounding(beta: float) -> float:
    """The ratio of 1 - beta in float32 to its exact value."""
    return (1 - ctypes.c_float(beta).value) / (1 - beta)


def sum_squares(tensors: Sequence[paddle.Tensor]) -> float:
    """The sum of the squares of all elements, in double precision; 0.0 for no tensors."""
    if not fits(*tensors):
        return reference.sum_squares(tensors)
    total = paddle.zeros([], "float64")
    for tensor in tensors:
        call("sum_squares", (tensor,), (total,), (math.prod(tensor.shape),))
    return float(total)
