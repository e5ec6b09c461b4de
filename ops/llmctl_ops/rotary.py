"""Rotary positions, half-rotate layout; differentiable in the input."""

from __future__ import annotations

import paddle

from llmctl_ops import reference
from llmctl_ops.calling import call, fits, wanted


def rope(x_BTNH: paddle.Tensor, cos_BT1H: paddle.Tensor, sin_BT1H: paddle.Tensor) -> paddle.Tensor:
    """x cos + (-high, low) sin, where low and high are the halves of each head.

    Args:
        x_BTNH: Queries or keys.
        cos_BT1H: Cosines [B or 1, T, 1, H]; no gradient goes to them.
        sin_BT1H: Sines of the same shape.

    Raises:
        ValueError: The shapes do not fit, or H is odd.
    """
    batch, new, _, width = x_BTNH.shape
    if width % 2 or cos_BT1H.shape not in ([1, new, 1, width], [batch, new, 1, width]):
        raise ValueError(
            f"rope of {x_BTNH.shape} needs an even width and angles [B or 1, T, 1, H], not {cos_BT1H.shape}"
        )
    if sin_BT1H.shape != cos_BT1H.shape:
        raise ValueError(f"rope has cosines {cos_BT1H.shape} but sines {sin_BT1H.shape}")
    if not fits(x_BTNH, cos_BT1H, sin_BT1H):
        return reference.rope(x_BTNH, cos_BT1H, sin_BT1H)
    if wanted(x_BTNH):
        return _Rope.apply(x_BTNH, cos_BT1H.detach(), sin_BT1H.detach())
    return _turn(x_BTNH, cos_BT1H, sin_BT1H, back=False)


class _Rope(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, back=False)

    @staticmethod
    def backward(ctx, grad):
        return _turn(grad, *ctx.saved_tensor(), back=True), None, None


def _turn(x: paddle.Tensor, cos: paddle.Tensor, sin: paddle.Tensor, back: bool) -> paddle.Tensor:
    out = paddle.empty_like(x)
    call("rope", (x, cos, sin), (out,), (*x.shape, cos.shape[0], int(back)))
    return out
