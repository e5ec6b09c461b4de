"""What an optimizer does to tensors: the AdamW update and the norm of gradients. Neither has a gradient."""

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
    """One update of a weight and its moments, in place (https://arxiv.org/abs/1711.05101), as ``paddle.optimizer.AdamW`` makes it.

    Args:
        weight: Any shape, as the other three.
        grad: Its gradient.
        moment1: First moment.
        moment2: Second moment.
        lr: Learning rate.
        powers: The betas to the power t at update t; the first update is number 1.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: The weight loses ``lr * weight_decay * weight``.

    Raises:
        ValueError: The shapes differ.
    """
    tensors = (weight, grad, moment1, moment2)
    if any(x.shape != weight.shape for x in tensors):
        raise ValueError(f"adamw needs four tensors of one shape, not {[x.shape for x in tensors]}")
    # The kernel writes to memory in order.
    if not fits(*tensors) or not all(x.is_contiguous() for x in (weight, moment1, moment2)):
        return reference.adamw(*tensors, lr, powers, betas, eps, weight_decay)
    # What the kernel's 1 - beta, of single precision, leaves out of the moments is given back here: 1e-5 of an update.
    rest1, rest2 = ((1 - power) * _single(beta) for power, beta in zip(powers, betas, strict=True))
    root = math.sqrt(rest2)
    numbers = *betas, eps * root, lr * root / rest1, lr * weight_decay
    call("adamw", tensors, (), (math.prod(weight.shape),), numbers)


def _single(beta: float) -> float:
    """What 1 - beta is in single precision, as a part of what it should be."""
    return (1 - ctypes.c_float(beta).value) / (1 - beta)


def sum_squares(tensors: Sequence[paddle.Tensor]) -> float:
    """The sum of all squares, in double precision; 0.0 for no tensors."""
    if not fits(*tensors):
        return reference.sum_squares(tensors)
    total = ctypes.c_double(0.0)
    for tensor in tensors:
        call("sum_squares", (tensor,), (), (math.prod(tensor.shape), ctypes.addressof(total)))
    return total.value
