"""The gate of a feed-forward layer, silu(gate) * up; differentiable in both."""

from __future__ import annotations

import math

import paddle

from llmctl_ops import library, reference
from llmctl_ops.calling import POINTER, SIZE, done, fits, pointer, wanted

FLOAT_BYTES = 4


def swiglu(gate: paddle.Tensor, up: paddle.Tensor | None = None) -> paddle.Tensor:
    """silu(gate) * up; without ``up`` the last axis of ``gate`` holds the gate and then, as wide, what it gates.

    Raises:
        ValueError: The two differ in shape, or the last axis is odd.
    """
    if up is None and gate.shape[-1] % 2:
        raise ValueError(f"swiglu of one tensor needs an even width, not {gate.shape[-1]}")
    if up is not None and up.shape != gate.shape:
        raise ValueError(f"swiglu needs gate and up of one shape, not {gate.shape} and {up.shape}")
    tensors = (gate,) if up is None else (gate, up)
    if not fits(*tensors):
        return reference.swiglu(*tensors)
    if wanted(*tensors):
        return _SwiGLU.apply(*tensors)
    return _forward(*(x.contiguous() for x in tensors))


class _SwiGLU(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, *tensors):
        ctx.wanted = [not x.stop_gradient for x in tensors]
        tensors = tuple(x.contiguous() for x in tensors)
        ctx.save_for_backward(*tensors)
        return _forward(*tensors)

    @staticmethod
    def backward(ctx, grad):
        tensors, grad = ctx.saved_tensor(), grad.contiguous()
        grads = [paddle.empty_like(x) for x in tensors]
        kernel = library.load().kernel("swiglu_backward", *[POINTER] * 5, *[SIZE] * 3)
        done(kernel(*_halves(tensors), pointer(grad), *_halves(grads), *_sizes(grad, tensors)))
        found = [x if wanted else None for x, wanted in zip(grads, ctx.wanted, strict=True)]
        return tuple(found) if len(found) > 1 else found[0]


def _forward(*tensors: paddle.Tensor) -> paddle.Tensor:
    *leading, width = tensors[0].shape
    out = paddle.empty([*leading, width if len(tensors) == 2 else width // 2], "float32")
    kernel = library.load().kernel("swiglu_forward", *[POINTER] * 3, *[SIZE] * 3)
    done(kernel(*_halves(tensors), pointer(out), *_sizes(out, tensors)))
    return out


def _halves(tensors) -> tuple[int | None, int | None]:
    """The addresses of gate and up."""
    start = pointer(tensors[0])
    if len(tensors) == 2:
        return start, pointer(tensors[1])
    return start, None if start is None else start + FLOAT_BYTES * (tensors[0].shape[-1] // 2)


def _sizes(out: paddle.Tensor, tensors) -> tuple[int, int, int]:
    *leading, width = out.shape
    return math.prod(leading), width, tensors[0].shape[-1]
