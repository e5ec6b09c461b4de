"""RoPE in neox layout (element i is paired with i + H/2); differentiable in the input."""

from __future__ import annotations

import paddle

from llmctl_ops import reference
from llmctl_ops.calling import call, fits, needs_grad


def rope(x_BTNH: paddle.Tensor, cos_BT1H: paddle.Tensor, sin_BT1H: paddle.Tensor) -> paddle.Tensor:
    """x cos + (-high, low) sin, where low and high are the halves of each head.

    Args:
        x_BTNH: Queries or keys.
        cos_BT1H: Cosines [B or 1, T, 1, H]; they get no gradient.
        sin_BT1H: Sines, the same shape.

    Raises:
        ValueError: The shapes do not fit, or H is odd.
    """
    batch, tokens, _, head_dim = x_BTNH.shape
    if head_dim % 2 or cos_BT1H.shape not in ([1, tokens, 1, head_dim], [batch, tokens, 1, head_dim]):
        raise ValueError(
            f"rope of {x_BTNH.shape} needs an even head_dim and angles [B or 1, T, 1, H], not {cos_BT1H.shape}"
        )
    if sin_BT1H.shape != cos_BT1H.shape:
        raise ValueError(f"rope needs cosines and sines of one shape, not {cos_BT1H.shape} and {sin_BT1H.shape}")
    if not fits(x_BTNH, cos_BT1H, sin_BT1H):
        return reference.rope(x_BTNH, cos_BT1H, sin_BT1H)
    if needs_grad(x_BTNH):
        return _Rope.apply(x_BTNH, cos_BT1H.detach(), sin_BT1H.detach())
    return _rotate(x_BTNH, cos_BT1H, sin_BT1H, inverse=False)


class _Rope(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, inverse=False)

    @staticmethod
    def backward(ctx, grad):
        return _rotate(grad, *ctx.saved_tensor(), inverse=True), None, None


def _rotate(x: paddle.Tensor, cos: paddle.Tensor, sin: paddle.Tensor, inverse: bool) -> paddle.Tensor:
    out = paddle.empty_like(x)
    call("rope", (x, cos, sin), (out,), (*x.shape, cos.shape[0], int(inverse)))
    return out
