"""Self-attention with grouped key-value heads, and the additive mask it takes.

Letters as in the package's docstring. Position encodings are in ``position``, caches in ``cache``.
"""

from __future__ import annotations

import paddle

from llmctl.nn.cache import KVCache
from llmctl.nn.linear import Linear
from llmctl.nn.norm import RMSNorm
from llmctl.nn.position import rotate

Angles = tuple[paddle.Tensor, paddle.Tensor]


def causal_bias(
    new: int, past: int, mask_BS: paddle.Tensor | None, dtype: str, window: int | None = None
) -> paddle.Tensor | None:
    """What to add to scores: 0 where a query may look, the lowest number elsewhere [B or 1, 1, T, S]; None = all zeros.

    The lowest number is finite, so a query that may look nowhere (padding) averages all values instead of giving NaN.

    Args:
        new: Number of queries, T.
        past: Number of keys before the first query.
        mask_BS: 1 = real, 0 = padding, over past and new keys; None = all real.
        dtype: Type of the scores.
        window: A query sees this many keys, its own included; None = all before it.

    Raises:
        ValueError: The mask does not cover past and new keys.
    """
    total = past + new
    if mask_BS is not None and mask_BS.shape[1] != total:
        raise ValueError(f"attention_mask has {mask_BS.shape[1]} columns for {past} past and {new} new positions")
    allowed = None
    windowed = window is not None and total > window
    if new > 1 or windowed:
        query_T1 = paddle.arange(past, total).unsqueeze(-1)
        allowed = paddle.arange(total) <= query_T1
        if windowed:
            allowed = paddle.logical_and(allowed, paddle.arange(total) > query_T1 - window)
        allowed = allowed.reshape([1, 1, new, total])
    if mask_BS is not None:
        real = mask_BS.astype("bool").unsqueeze([1, 2])
        allowed = real if allowed is None else paddle.logical_and(allowed, real)
    if allowed is None:
        return None
    lowest = paddle.finfo(dtype).min
    return paddle.where(allowed, paddle.zeros([], dtype), paddle.full([], lowest, dtype))


def attend(
    q_BTNH: paddle.Tensor,
    k_BSKH: paddle.Tensor,
    v_BSKH: paddle.Tensor,
    bias_B1TS: paddle.Tensor | None,
    dropout: float = 0.0,
) -> paddle.Tensor:
    """softmax(q k^T / sqrt(head_dim) + bias) v, as [B, T, N*H]; query head n reads key-value head n // (N/K).

    ``dropout`` is the part of the weights that is left out; the bias may differ from head to head.
    """
    batch, new, heads, width = q_BTNH.shape
    total, groups = k_BSKH.shape[1], k_BSKH.shape[2]
    q = (q_BTNH * width**-0.5).transpose([0, 2, 1, 3]).reshape([batch, groups, -1, width])
    k, v = k_BSKH.transpose([0, 2, 1, 3]), v_BSKH.transpose([0, 2, 1, 3])
    scores_BNTS = paddle.matmul(q, k, transpose_y=True).reshape([batch, heads, new, total])
    if bias_B1TS is not None:
        # Broadcasting over an inner axis is many times slower on the CPU than adding tensors of one shape.
        scores_BNTS = scores_BNTS + bias_B1TS.expand([batch, heads, new, total])
    weights = softmax(scores_BNTS).reshape([batch, groups, -1, total])
    if dropout:
        weights = paddle.nn.functional.dropout(weights, dropout)
    mixed_BNTH = paddle.matmul(weights, v).reshape([batch, heads, new, width])
    return mixed_BNTH.transpose([0, 2, 1, 3]).reshape([batch, new, heads * width])


def softmax(scores: paddle.Tensor) -> paddle.Tensor:
    """Softmax over the last axis in float32 or better; the result has the type of the scores."""
    if scores.dtype in (paddle.float16, paddle.bfloat16):
        return paddle.nn.functional.softmax(scores, axis=-1, dtype="float32").astype(scores.dtype)
    return paddle.nn.functional.softmax(scores, axis=-1)


class Attention(paddle.nn.Layer):
    """Causal self-attention, with rotary positions where angles are given. Head counts come from the projections' widths, which may be split.

    Args:
        hidden: Width of input and output.
        heads: Query heads.
        kv_heads: Key-value heads; a divisor of ``heads``.
        head_dim: Width of a head.
        bias: Whether the projections of queries, keys and values have biases.
        std: Standard deviation of the initial weights.
        out_bias: Whether the output projection has a bias; None = as the others.
        norm_eps: Gives queries and keys an RMSNorm over each head, with this epsilon; None = none.
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        bias: bool = False,
        std: float = 0.02,
        out_bias: bool | None = None,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = Linear(hidden, heads * head_dim, bias, std)
        self.k_proj = Linear(hidden, kv_heads * head_dim, bias, std)
        self.v_proj = Linear(hidden, kv_heads * head_dim, bias, std)
        self.o_proj = Linear(heads * head_dim, hidden, bias if out_bias is None else out_bias, std)
        self.q_norm = None if norm_eps is None else RMSNorm(head_dim, norm_eps)
        self.k_norm = None if norm_eps is None else RMSNorm(head_dim, norm_eps)

    def forward(
        self,
        x_BTD: paddle.Tensor,
        angles: Angles | None,
        bias_B1TS: paddle.Tensor | None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> paddle.Tensor:
        q, k, v = (
            project(x_BTD).reshape([0, 0, -1, self.head_dim]) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return self.o_proj(attend(q, k, v, bias_B1TS))
