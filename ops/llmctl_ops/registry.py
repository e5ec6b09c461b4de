"""The operators as rows: name, function, twin, and inputs on which the two are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import paddle

from llmctl_ops import reference
from llmctl_ops.attention import attention

TOLERANCE = 2e-5
"""Largest difference that passes, as a part of the largest value or of 1."""


@dataclass(frozen=True)
class Op:
    """One operator.

    Args:
        name: As in ``llmctl_ops``.
        compare: Runs the operator in float32 and its twin in float64, forward and backward; gives the largest difference
            of a result or gradient, as a part of the largest value or of 1.
    """

    name: str
    compare: Callable[[], float]


def differences(function: Callable, twin: Callable, tensors: list[paddle.Tensor], *rest) -> float:
    """As ``Op.compare``, for a function of tensors with gradients and other arguments."""
    results = [_run(chosen, tensors, rest, dtype) for chosen, dtype in ((function, "float32"), (twin, "float64"))]
    return max(difference(ours, theirs) for ours, theirs in zip(*results, strict=True))


def difference(ours: paddle.Tensor, theirs: paddle.Tensor) -> float:
    """The largest difference as a part of the largest value or of 1; not a number if one of them is none."""
    theirs = theirs.astype("float64")
    return float((ours.astype("float64") - theirs).abs().max() / theirs.abs().max().clip(min=1.0))


def _run(function: Callable, tensors: list[paddle.Tensor], rest: tuple, dtype: str) -> list[paddle.Tensor]:
    inputs = [tensor.astype(dtype).detach() for tensor in tensors]
    for tensor in inputs:
        tensor.stop_gradient = False
    rest = tuple(x.astype(dtype) if isinstance(x, paddle.Tensor) and x.is_floating_point() else x for x in rest)
    result = function(*inputs, *rest)
    weights = paddle.linspace(-1, 1, result.size, dtype=dtype).reshape(result.shape)
    (result * weights).sum().backward()
    return [result, *(tensor.grad for tensor in inputs)]


def _noise(*shape: int) -> paddle.Tensor:
    """Values about 0 that are the same each time and leave the generator of the process alone."""
    size = paddle.arange(paddle.to_tensor(shape).prod(), dtype="float64")
    return (2 * paddle.sin(12.9898 * size + 78.233 * (size % 7))).astype("float32").reshape(shape)


def _attention() -> float:
    q, k, v = _noise(2, 70, 4, 40), _noise(2, 75, 2, 40), _noise(2, 75, 2, 40)
    first = paddle.arange(75, dtype="int32").unsqueeze(0)
    last = paddle.where(first < 31, paddle.full_like(first, 31), paddle.full_like(first, 75))
    slopes, places = paddle.to_tensor([0.5, 0.25, 0.125, 0.0625]), first.astype("float32")
    return differences(attention, reference.attention, [q, k, v], first, last, 5, 40**-0.5, slopes, places)


OPS = (Op("attention", _attention),)
