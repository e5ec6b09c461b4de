"""Self-attention with grouped key-value heads.

Shape suffixes as in the package's docstring. RoPE is in ``rotary``, masks are in ``mask``, the KV cache is in ``cache``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import paddle

from llmctl.nn import flashmask
from llmctl.nn.cache import KVCache
from llmctl.nn.kernels import compiled
from llmctl.nn.linear import Linear
from llmctl.nn.mask import Mask
from llmctl.nn.norm import RMSNorm
from llmctl.nn.rotary import ApplyRope, apply_rope_qk


def attend(
    q_BTNH: paddle.Tensor,
    k_BSKH: paddle.Tensor,
    v_BSKH: paddle.Tensor,
    mask: Mask | None,
    dropout: float = 0.0,
) -> paddle.Tensor:
    """softmax(q k^T / sqrt(head_dim) + mask) v, as [B, T, N*H]; query head n reads key-value head n // (N/K).

    Packed documents are computed one by one, so that the cost is the sum of the squares of their lengths.

    Args:
        q_BTNH: Queries.
        k_BSKH: Keys, past and new.
        v_BSKH: Values.
        mask: Which keys each query attends to; None = all.
        dropout: Dropout of the attention weights.
    """
    operator = None if mask is None or dropout else compiled("attention", q_BTNH, k_BSKH, v_BSKH)
    if operator is not None and mask.new != 1:
        slopes, key_positions = mask.alibi(q_BTNH.dtype)
        out_BTNH = operator(
            q_BTNH, k_BSKH, v_BSKH, mask.first_BS, mask.last_BS, mask.past, slopes=slopes, key_positions=key_positions
        )
        return out_BTNH.reshape([0, 0, -1])
    if flashmask.fits(q_BTNH, mask, dropout):
        return flashmask.attend(q_BTNH, k_BSKH, v_BSKH, mask)
    if mask is not None and mask.packed:
        return attend_by_document(q_BTNH, k_BSKH, v_BSKH, mask, dropout)
    return attend_dense(q_BTNH, k_BSKH, v_BSKH, None if mask is None else mask.bias(q_BTNH.dtype), dropout)


def attend_dense(
    q_BTNH: paddle.Tensor,
    k_BSKH: paddle.Tensor,
    v_BSKH: paddle.Tensor,
    bias_BNTS: paddle.Tensor | None,
    dropout: float = 0.0,
) -> paddle.Tensor:
    """``attend`` with the full score matrix; the bias broadcasts over batch and heads."""
    batch, new, heads, head_dim = q_BTNH.shape
    total, groups = k_BSKH.shape[1], k_BSKH.shape[2]
    q = (q_BTNH * head_dim**-0.5).transpose([0, 2, 1, 3]).reshape([0, groups, -1, head_dim])
    k, v = k_BSKH.transpose([0, 2, 1, 3]), v_BSKH.transpose([0, 2, 1, 3])
    scores_BNTS = paddle.matmul(q, k, transpose_y=True).reshape([0, heads, -1, 0])
    if bias_BNTS is not None:
        # Broadcasting over an inner axis is many times slower on the CPU than adding tensors of one shape.
        scores_BNTS = scores_BNTS + bias_BNTS.expand([batch, heads, new, total])
    weights = softmax(scores_BNTS).reshape([0, groups, -1, 0])
    if dropout:
        weights = paddle.nn.functional.dropout(weights, dropout)
    mixed_BNTH = paddle.matmul(weights, v).reshape([0, heads, -1, head_dim])
    return mixed_BNTH.transpose([0, 2, 1, 3]).reshape([0, 0, heads * head_dim])


def attend_by_document(
    q_BTNH: paddle.Tensor, k_BSKH: paddle.Tensor, v_BSKH: paddle.Tensor, mask: Mask, dropout: float = 0.0
) -> paddle.Tensor:
    """``attend`` over spans of queries, each with the keys from the first to the last that it attends to."""
    batch, new, heads, head_dim = q_BTNH.shape
    first_BS, last_BS = (np.broadcast_to(m.numpy(), [batch, m.shape[1]]) for m in (mask.first_BS, mask.last_BS))
    rows = []
    for b in range(batch):
        spans = []
        for start, stop in pairwise(_bounds(last_BS[b], mask.past, new)):
            attended = np.flatnonzero((first_BS[b] < mask.past + stop) & (last_BS[b] > mask.past + start))
            if not len(attended):
                spans.append(paddle.zeros([1, stop - start, heads * head_dim], q_BTNH.dtype))
                continue
            one, queries, keys = slice(b, b + 1), slice(start, stop), slice(int(attended[0]), int(attended[-1]) + 1)
            bias = mask.bias_slice(one, queries, keys, q_BTNH.dtype)
            spans.append(attend_dense(q_BTNH[one, queries], k_BSKH[one, keys], v_BSKH[one, keys], bias, dropout))
        rows.append(paddle.concat(spans, axis=1))
    return paddle.concat(rows)


def _bounds(last_S: np.ndarray, past: int, new: int) -> list[int]:
    """Bounds of the spans of queries between which the mask changes, counted from the first new row."""
    inside = (int(end) - past for end in np.unique(last_S))
    return sorted({0, new, *(end for end in inside if 0 < end < new)})


def softmax(scores: paddle.Tensor) -> paddle.Tensor:
    """Softmax over the last axis in float32 or better; the result has the type of the scores."""
    if scores.dtype in (paddle.float16, paddle.bfloat16):
        return paddle.nn.functional.softmax(scores, axis=-1, dtype="float32").astype(scores.dtype)
    return paddle.nn.functional.softmax(scores, axis=-1)


def split_heads(x_BTC: paddle.Tensor, width: int) -> paddle.Tensor:
    """[B, T, N*width] to [B, T, N, width]."""
    return x_BTC.reshape([0, 0, x_BTC.shape[-1] // width, width])


class Attention(paddle.nn.Layer):
    """Self-attention, with RoPE if cosines and sines are given.

    The number of heads follows from the projections' widths, which tensor parallelism divides.

    Args:
        hidden: Hidden size.
        heads: Query heads.
        kv_heads: Key-value heads; a divisor of ``heads``.
        head_dim: Elements of a head.
        bias: Whether the projections of queries, keys and values have biases.
        std: Standard deviation of the initial weights.
        out_bias: Whether the output projection has a bias; None = as the others.
        norm_eps: Epsilon of an RMSNorm over each head of queries and keys; None = no such norm.
        out_name: Name of the output projection in the state dict.
        dropout: Dropout of the attention weights in training.
        rope: Rotates queries and keys by cosines and sines, such as ``apply_partial_rope``.
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
        out_name: str = "o_proj",
        dropout: float = 0.0,
        rope: ApplyRope = apply_rope_qk,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = Linear(hidden, heads * head_dim, bias, std)
        self.k_proj = Linear(hidden, kv_heads * head_dim, bias, std)
        self.v_proj = Linear(hidden, kv_heads * head_dim, bias, std)
        self.add_sublayer(out_name, Linear(heads * head_dim, hidden, bias if out_bias is None else out_bias, std))
        self.q_norm = None if norm_eps is None else RMSNorm(head_dim, norm_eps)
        self.k_norm = None if norm_eps is None else RMSNorm(head_dim, norm_eps)
        self._out, self._dropout, self._rope = out_name, dropout, rope

    def forward(
        self,
        x_BTD: paddle.Tensor,
        cos_sin: Any,
        mask: Mask | None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> paddle.Tensor:
        q, k, v = (split_heads(project(x_BTD), self.head_dim) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if cos_sin is not None:
            q, k = self._rope(q, k, cos_sin)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return getattr(self, self._out)(attend(q, k, v, mask, self._dropout if self.training else 0.0))
