"""The table of operators on tensors: a name, and a comparison with the reference on fixed inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import paddle

from llmctl_ops import reference
from llmctl_ops.activation import gelu_tanh
from llmctl_ops.bias import add_bias
from llmctl_ops.flash_attention import attention
from llmctl_ops.gate import swiglu
from llmctl_ops.loss import cross_entropy
from llmctl_ops.norm import layer_norm, rms_norm
from llmctl_ops.optimizer import adamw, sum_squares
from llmctl_ops.rotary import rope

TOLERANCE = 2e-5
"""Largest difference that passes, relative to the largest value or to 1."""


@dataclass(frozen=True)
class Op:
    """One operator.

    Args:
        name: Name in ``llmctl_ops``, or of another kernel of the library.
        compare: Runs the operator in float32 and its reference in float64, forward and backward; returns the largest
            difference of a result or gradient, relative to the largest value or to 1.
    """

    name: str
    compare: Callable[[], float]


def compare(function: Callable, exact: Callable, tensors: list[paddle.Tensor], *rest) -> float:
    """``Op.compare`` for a function of tensors that need gradients, and other arguments."""
    results = [_run(one, tensors, rest, dtype) for one, dtype in ((function, "float32"), (exact, "float64"))]
    return max(difference(ours, expected) for ours, expected in zip(*results, strict=True))


def difference(ours: paddle.Tensor, expected: paddle.Tensor) -> float:
    """The largest difference, relative to the largest value or to 1; NaN if either has a NaN."""
    expected = expected.astype("float64")
    return float((ours.astype("float64") - expected).abs().max() / expected.abs().max().clip(min=1.0))


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
    """Deterministic values around 0, without the random generator of the process."""
    size = paddle.arange(paddle.to_tensor(shape).prod(), dtype="float64")
    return (2 * paddle.sin(12.9898 * size + 78.233 * (size % 7))).astype("float32").reshape(shape)


def _compare_attention() -> float:
    q, k, v = _noise(2, 70, 4, 40), _noise(2, 75, 2, 40), _noise(2, 75, 2, 40)
    first = paddle.arange(75, dtype="int32").unsqueeze(0)
    last = paddle.where(first < 31, paddle.full_like(first, 31), paddle.full_like(first, 75))
    slopes, positions = paddle.to_tensor([0.5, 0.25, 0.125, 0.0625]), first.astype("float32")
    return compare(attention, reference.attention, [q, k, v], first, last, 5, 40**-0.5, slopes, positions)


def _adamw(update: Callable, dtype: str) -> list[paddle.Tensor]:
    """The weight and its moments after three updates."""
    weight, grad = (_noise(70, 37).astype(dtype) * factor for factor in (1.0, 0.01))
    moments = paddle.zeros_like(weight), paddle.zeros_like(weight)
    betas = 0.9, 0.95
    for step in (1, 2, 3):
        update(weight, grad * step, *moments, 1e-2, (betas[0] ** step, betas[1] ** step), betas, 1e-8, 0.1)
    return [weight, *moments]


def _compare_adamw() -> float:
    results = _adamw(adamw, "float32"), _adamw(reference.adamw, "float64")
    return max(difference(ours, expected) for ours, expected in zip(*results, strict=True))


def _compare_squares() -> float:
    tensors = [_noise(70, 37), _noise(5)]
    ours, expected = sum_squares(tensors), reference.sum_squares([x.astype("float64") for x in tensors])
    return abs(ours - expected) / expected


def _compare_loss() -> float:
    labels = paddle.arange(0, 33 * 7, 7, dtype="int64") % 77
    return compare(cross_entropy, reference.cross_entropy, [20 * _noise(33, 77)], labels)


def _compare_layer_norm() -> float:
    return compare(layer_norm, reference.layer_norm, [3 + _noise(9, 77), _noise(77), _noise(77)], 1e-5)


def _compare_rope() -> float:
    angle = 3 * _noise(1, 21, 1, 20)
    return compare(rope, reference.rope, [_noise(2, 21, 3, 20)], angle.cos(), angle.sin())


OPS = (
    Op("attention", _compare_attention),
    Op("rms_norm", lambda: compare(rms_norm, reference.rms_norm, [_noise(9, 77), _noise(77)], 1e-5)),
    Op("layer_norm", _compare_layer_norm),
    Op("add_bias", lambda: compare(add_bias, reference.add_bias, [_noise(9, 77), _noise(77)])),
    Op("gelu_tanh", lambda: compare(gelu_tanh, reference.gelu_tanh, [2 * _noise(9, 77)])),
    Op("rope", _compare_rope),
    Op("swiglu", lambda: compare(swiglu, reference.swiglu, [3 * _noise(9, 77), _noise(9, 77)])),
    Op("cross_entropy", _compare_loss),
    Op("adamw", _compare_adamw),
    Op("sum_squares", _compare_squares),
)
