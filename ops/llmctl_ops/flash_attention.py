"""Flash attention whose mask is a range of queries for each key; differentiable in queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import paddle

from llmctl_ops import reference
from llmctl_ops.calling import call, fits, needs_grad

MAX_HEAD_DIM = 512
"""The largest head_dim of the kernels, whose buffers have a fixed size."""


@dataclass(frozen=True, eq=False)
class _Mask:
    """The arguments without a gradient."""

    first: paddle.Tensor
    last: paddle.Tensor
    past: int
    scale: float
    slopes: paddle.Tensor | None
    key_positions: paddle.Tensor | None

    @property
    def tensors(self) -> tuple[paddle.Tensor | None, ...]:
        return self.first, self.last, self.slopes, self.key_positions

    def sizes(self, q: paddle.Tensor, k: paddle.Tensor) -> tuple[int, ...]:
        batch, queries, heads, head_dim = q.shape
        rows = 1 if self.key_positions is None else self.key_positions.shape[0]
        return batch, queries, k.shape[1], heads, k.shape[2], head_dim, self.first.shape[0], rows, self.past


def attention(
    q_BTNH: paddle.Tensor,
    k_BSKH: paddle.Tensor,
    v_BSKH: paddle.Tensor,
    first: paddle.Tensor,
    last: paddle.Tensor,
    past: int = 0,
    scale: float | None = None,
    slopes: paddle.Tensor | None = None,
    key_positions: paddle.Tensor | None = None,
) -> paddle.Tensor:
    """softmax(scale * q k^T + slopes * key_positions) v over the keys that a query attends to: [B, T, N, H].

    Query t attends to key j if ``first[j] <= past + t < last[j]`` (FlashMask); a query that attends to no key gives zeros.
    Query head n uses key-value head n // (N / K). Time follows the number of unmasked pairs; no buffer has size T x S.

    Args:
        q_BTNH: Queries.
        k_BSKH: Keys, including past ones.
        v_BSKH: Values.
        first: int32 [B or 1, S], the first query that attends to the key.
        last: int32 [B or 1, S], the end of these queries, exclusive; first >= last masks the key for all queries.
        past: Number of past queries, before query 0.
        scale: Factor of the scores; None = 1 / sqrt(H).
        slopes: ALiBi slopes [N], in the dtype of q.
        key_positions: ALiBi positions of the keys [B or 1, S], in the dtype of q.

    Raises:
        ValueError: Shapes or types do not fit together.
    """
    scale = q_BTNH.shape[-1] ** -0.5 if scale is None else float(scale)
    _check(q_BTNH, k_BSKH, v_BSKH, first, last, slopes, key_positions)
    if not fits(q_BTNH, k_BSKH, v_BSKH) or q_BTNH.shape[-1] > MAX_HEAD_DIM:
        return reference.attention(q_BTNH, k_BSKH, v_BSKH, first, last, past, scale, slopes, key_positions)
    mask = _Mask(first, last, past, scale, slopes, key_positions)
    if needs_grad(q_BTNH, k_BSKH, v_BSKH):
        return _Attention.apply(q_BTNH, k_BSKH, v_BSKH, mask)
    return _forward(q_BTNH, k_BSKH, v_BSKH, mask, None)


class _Attention(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, q, k, v, mask):
        ctx.needs_grad = [not x.stop_gradient for x in (q, k, v)]
        lse = paddle.empty([q.shape[0], q.shape[2], q.shape[1]], "float32")
        out = _forward(q, k, v, mask, lse)
        ctx.mask = mask
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse = ctx.saved_tensor()
        grads = [paddle.empty_like(x) for x in (q, k, v)]
        inputs = q, k, v, *ctx.mask.tensors, out, lse, grad
        call("attention_backward", inputs, grads, ctx.mask.sizes(q, k), (ctx.mask.scale,))
        return tuple(x if needed else None for x, needed in zip(grads, ctx.needs_grad, strict=True))


def _forward(q, k, v, mask: _Mask, lse: paddle.Tensor | None) -> paddle.Tensor:
    out = paddle.empty_like(q)
    call("attention_forward", (q, k, v, *mask.tensors), (out, lse), mask.sizes(q, k), (mask.scale,))
    return out


def _check(q, k, v, first, last, slopes, key_positions) -> None:
    """Refuses arguments that the kernels would read out of bounds."""
    if not (q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]):
        raise ValueError(
            f"attention of q {q.shape}, k {k.shape}, v {v.shape}: needs [B, T, N, H] and twice [B, S, K, H]"
        )
    if k.shape[2] < 1 or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"attention of {q.shape[2]} query heads needs a divisor of that as key-value heads, not {k.shape[2]}"
        )
    rows = ([1, k.shape[1]], [k.shape[0], k.shape[1]])
    for name, tensor in (("first", first), ("last", last)):
        if tensor.dtype != paddle.int32 or tensor.shape not in rows or tensor.shape != first.shape:
            raise ValueError(f"attention's {name} is {tensor.dtype} {tensor.shape}, not int32 {rows[0]} or {rows[1]}")
    if (slopes is None) != (key_positions is None):
        raise ValueError("attention needs both slopes and key_positions, or neither")
    if key_positions is not None and (key_positions.shape not in rows or slopes.shape != [q.shape[2]]):
        raise ValueError(
            f"attention's slopes {slopes.shape} and key_positions {key_positions.shape} must be [N] and [B or 1, S]"
        )
    if key_positions is not None and not key_positions.dtype == slopes.dtype == q.dtype:
        raise ValueError(
            f"attention's slopes {slopes.dtype} and key_positions {key_positions.dtype} must have q's {q.dtype}"
        )
