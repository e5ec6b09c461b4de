"""What an optimizer does to tensors: the AdamW update and the norm of gradients. Neither has a gradient."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import paddle

from llmctl_ops import library, reference
from llmctl_ops.calling import FLOAT, POINTER, SIZE, done, fits, pointer


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
        ValueError: The shapes differ, or a tensor that is written is a view with gaps.
    """
    tensors = (weight, grad, moment1, moment2)
    if any(x.shape != weight.shape for x in tensors):
        raise ValueError(f"adamw needs four tensors of one shape, not {[x.shape for x in tensors]}")
    if not fits(*tensors):
        return reference.adamw(*tensors, lr, powers, betas, eps, weight_decay)
    if not all(x.is_contiguous() for x in (weight, moment1, moment2)):
        raise ValueError("adamw writes to its tensors in place, so they may not be views with gaps")
    # What the kernel's 1 - beta, of single precision, leaves out of the moments is given back here: 1e-5 of an update.
    rest1, rest2 = ((1 - power) * _single(beta) for power, beta in zip(powers, betas, strict=True))
    root = math.sqrt(rest2)
    kernel = library.load().kernel("adamw", *[POINTER] * 4, SIZE, *[FLOAT] * 5)
    numbers = *betas, eps * root, lr * root / rest1, lr * weight_decay
    grad = grad.contiguous()
    done(kernel(*(pointer(x) for x in (weight, grad, moment1, moment2)), math.prod(weight.shape), *numbers))


def _single(beta: float) -> float:
    """What 1 - beta is in single precision, as a part of what it should be."""
    return (1 - ctypes.c_float(beta).value) / (1 - beta)


def sum_squares(tensors: Sequence[paddle.Tensor]) -> float:
    """The sum of all squares, in double precision; 0.0 for no tensors."""
    if not fits(*tensors):
        return reference.sum_squares(tensors)
    total = ctypes.c_double(0.0)
    kernel = library.load().kernel("sum_squares", POINTER, SIZE, POINTER)
    for tensor in tensors:
        tensor = tensor.contiguous()
        done(kernel(pointer(tensor), math.prod(tensor.shape), ctypes.addressof(total)))
    return total.value
