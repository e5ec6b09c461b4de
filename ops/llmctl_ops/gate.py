"""The gate of a feed-forward layer, silu(gate) * up; differentiable in both."""

from __future__ import annotations

import math

import paddle

from llmctl_ops import reference
from llmctl_ops.calling import call, fits, wanted

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
    return _forward(*tensors)


class _SwiGLU(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, *tensors):
        ctx.wanted = [not x.stop_gradient for x in tensors]
        ctx.save_for_backward(*tensors)
        return _forward(*tensors)

    @staticmethod
    def backward(ctx, grad):
        tensors = [x.contiguous() for x in ctx.saved_tensor()]
        grads = [paddle.empty_like(x) for x in tensors]
        call("swiglu_backward", (*_halves(tensors), grad), _halves(grads), _sizes(grad, tensors))
        found = [x if wanted else None for x, wanted in zip(grads, ctx.wanted, strict=True)]
        return tuple(found) if len(found) > 1 else found[0]


def _forward(*tensors: paddle.Tensor) -> paddle.Tensor:
    tensors = [x.contiguous() for x in tensors]
    *leading, width = tensors[0].shape
    out = paddle.empty([*leading, width if len(tensors) == 2 else width // 2], "float32")
    call("swiglu_forward", _halves(tensors), (out,), _sizes(out, tensors))
    return out


def _halves(tensors) -> tuple[paddle.Tensor, paddle.Tensor | int]:
    """Gate and up; the second half of one contiguous tensor by its address."""
    if len(tensors) == 2:
        return tensors
    (both,) = tensors
    return both, both.data_ptr() + FLOAT_BYTES * (both.shape[-1] // 2)


def _sizes(out: paddle.Tensor, tensors) -> tuple[int, int, int]:
    *leading, width = out.shape
    return math.prod(leading), width, tensors[0].shape[-1]
