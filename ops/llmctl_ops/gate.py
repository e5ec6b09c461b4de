"""SwiGLU, silu(gate) * up; differentiable in both."""

from __future__ import annotations

import math

import paddle

from llmctl_ops import reference
from llmctl_ops.calling import call, fits, needs_grad


def swiglu(gate: paddle.Tensor, up: paddle.Tensor | None = None) -> paddle.Tensor:
    """silu(gate) * up; without ``up`` the last axis of ``gate`` holds the gate and then up, each half as wide.

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
    if needs_grad(*tensors):
        return _SwiGLU.apply(*tensors)
    return _forward(*tensors)


class _SwiGLU(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, *tensors):
        ctx.needs_grad = [not x.stop_gradient for x in tensors]
        ctx.save_for_backward(*tensors)
        return _forward(*tensors)

    @staticmethod
    def backward(ctx, grad):
        tensors = ctx.saved_tensor()
        grads = [paddle.empty_like(x) for x in tensors]
        call("swiglu_backward", (*_pair(tensors), grad), _pair(grads), _sizes(grad, tensors))
        found = [x if needed else None for x, needed in zip(grads, ctx.needs_grad, strict=True)]
        return tuple(found) if len(found) > 1 else found[0]


def _forward(*tensors: paddle.Tensor) -> paddle.Tensor:
    *leading, width = tensors[0].shape
    out = paddle.empty([*leading, width if len(tensors) == 2 else width // 2], "float32")
    call("swiglu_forward", _pair(tensors), (out,), _sizes(out, tensors))
    return out


def _pair(tensors) -> tuple[paddle.Tensor, paddle.Tensor | None]:
    """Gate and up; None = up is in the second half of the gate's rows."""
    return tensors[0], tensors[1] if len(tensors) == 2 else None


def _sizes(out: paddle.Tensor, tensors) -> tuple[int, int, int]:
    """Rows, width, and the stride of the gate's rows."""
    *leading, width = out.shape
    return math.prod(leading), width, tensors[0].shape[-1]
