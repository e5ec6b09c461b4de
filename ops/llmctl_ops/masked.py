"""Attention whose mask is an interval of queries for each key; differentiable in queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import paddle

from llmctl_ops import reference
from llmctl_ops.calling import call, fits, wanted

WIDEST = 512
"""The largest head_dim that the kernels have buffers for."""


@dataclass(frozen=True, eq=False)
class _Mask:
    """Who sees what, and how much: the arguments that have no gradient."""

    first: paddle.Tensor
    last: paddle.Tensor
    past: int
    scale: float
    slopes: paddle.Tensor | None
    places: paddle.Tensor | None

    @property
    def tensors(self) -> tuple[paddle.Tensor | None, ...]:
        return self.first, self.last, self.slopes, self.places

    def sizes(self, q: paddle.Tensor, k: paddle.Tensor) -> tuple[int, ...]:
        batch, new, heads, width = q.shape
        rows = 1 if self.places is None else self.places.shape[0]
        return batch, new, k.shape[1], heads, k.shape[2], width, self.first.shape[0], rows, self.past


def attention(
    q_BTNH: paddle.Tensor,
    k_BSKH: paddle.Tensor,
    v_BSKH: paddle.Tensor,
    first: paddle.Tensor,
    last: paddle.Tensor,
    past: int = 0,
    scale: float | None = None,
    slopes: paddle.Tensor | None = None,
    places: paddle.Tensor | None = None,
) -> paddle.Tensor:
    """softmax(scale * q k^T + slopes * places) v over the keys that a query sees: [B, T, N, H].

    The query in column t sees key j if ``first[j] <= past + t < last[j]``; one that sees no key gives zeros. Query head n
    reads key-value head n // (N / K). Time and memory follow what is seen; nothing of size T x S is made.

    Args:
        q_BTNH: Queries.
        k_BSKH: Keys, past ones included.
        v_BSKH: Values.
        first: int32 [B or 1, S], the first query of the row that sees the key.
        last: int32 [B or 1, S], the query from which on it is seen no more; first >= last = a key that nobody sees.
        past: Queries of the row before column 0.
        scale: Factor of the products; None = 1 / sqrt(H).
        slopes: [N], each head's factor of ``places``, in the type of q.
        places: [B or 1, S], what is added to the scores of a key times the slope.

    Raises:
        ValueError: Shapes or types do not fit together.
    """
    scale = q_BTNH.shape[-1] ** -0.5 if scale is None else float(scale)
    _check(q_BTNH, k_BSKH, v_BSKH, first, last, slopes, places)
    if not fits(q_BTNH, k_BSKH, v_BSKH) or q_BTNH.shape[-1] > WIDEST:
        return reference.attention(q_BTNH, k_BSKH, v_BSKH, first, last, past, scale, slopes, places)
    mask = _Mask(first, last, past, scale, slopes, places)
    if wanted(q_BTNH, k_BSKH, v_BSKH):
        return _Attention.apply(q_BTNH, k_BSKH, v_BSKH, mask)
    return _forward(q_BTNH, k_BSKH, v_BSKH, mask, None)


class _Attention(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, q, k, v, mask):
        ctx.wanted = [not x.stop_gradient for x in (q, k, v)]
        log_sum = paddle.empty([q.shape[0], q.shape[2], q.shape[1]], "float32")
        out = _forward(q, k, v, mask, log_sum)
        ctx.mask = mask
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, log_sum = ctx.saved_tensor()
        grads = [paddle.empty_like(x) for x in (q, k, v)]
        inputs = q, k, v, *ctx.mask.tensors, out, log_sum, grad
        call("attention_backward", inputs, grads, ctx.mask.sizes(q, k), (ctx.mask.scale,))
        return tuple(x if wanted else None for x, wanted in zip(grads, ctx.wanted, strict=True))


def _forward(q, k, v, mask: _Mask, log_sum: paddle.Tensor | None) -> paddle.Tensor:
    out = paddle.empty_like(q)
    call("attention_forward", (q, k, v, *mask.tensors), (out, log_sum), mask.sizes(q, k), (mask.scale,))
    return out


def _check(q, k, v, first, last, slopes, places) -> None:
    """Refuses what the kernels would read past the end of."""
    if not (q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]):
        raise ValueError(
            f"attention of q {q.shape}, k {k.shape}, v {v.shape}: needs [B, T, N, H] and twice [B, S, K, H]"
        )
    if k.shape[2] < 1 or q.shape[2] % k.shape[2]:
        raise ValueError(f"attention of {q.shape[2]} query heads needs a divisor of that as key-value heads")
    rows = ([1, k.shape[1]], [k.shape[0], k.shape[1]])
    for name, tensor in (("first", first), ("last", last)):
        if tensor.dtype != paddle.int32 or tensor.shape not in rows or tensor.shape != first.shape:
            raise ValueError(f"attention's {name} is {tensor.dtype} {tensor.shape}, not int32 {rows[0]} or {rows[1]}")
    if (slopes is None) != (places is None):
        raise ValueError("attention needs both slopes and places, or neither")
    if places is not None and (places.shape not in rows or slopes.shape != [q.shape[2]]):
        raise ValueError(f"attention's slopes {slopes.shape} and places {places.shape} must be [N] and [B or 1, S]")
    if places is not None and not places.dtype == slopes.dtype == q.dtype:
        raise ValueError(f"attention's slopes {slopes.dtype} and places {places.dtype} must be of q's {q.dtype}")
