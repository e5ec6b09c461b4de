"""What each operator computes, composed of paddle's own operations: for any type, any device, and programs being traced.

The compiled operators are compared with these, and they stand in where there is no compiled one. They are written to be
read, not to be quick.
"""

from __future__ import annotations

import paddle
from paddle.nn import functional as F


def attention(q_BTNH, k_BSKH, v_BSKH, first, last, past, scale, slopes=None, places=None):
    """``llmctl_ops.attention``."""
    _, new, heads, _ = q_BTNH.shape
    repeats = heads // k_BSKH.shape[2]
    k_BSNH = paddle.repeat_interleave(k_BSKH, repeats, axis=2) if repeats > 1 else k_BSKH
    v_BSNH = paddle.repeat_interleave(v_BSKH, repeats, axis=2) if repeats > 1 else v_BSKH
    scores_BNTS = scale * paddle.einsum("btnh,bsnh->bnts", q_BTNH, k_BSNH)
    if places is not None:
        scores_BNTS = scores_BNTS + slopes.reshape([1, -1, 1, 1]) * places.unsqueeze([1, 2])
    query_T1 = paddle.arange(past, past + new, dtype="int32").unsqueeze(-1)
    seen_BTS = paddle.logical_and(first.unsqueeze(1) <= query_T1, query_T1 < last.unsqueeze(1))
    seen_BNTS = seen_BTS.unsqueeze(1).expand_as(scores_BNTS)
    weights_BNTS = F.softmax(paddle.where(seen_BNTS, scores_BNTS, paddle.full_like(scores_BNTS, -1e30)), axis=-1)
    weights_BNTS = paddle.where(seen_BNTS, weights_BNTS, paddle.zeros_like(weights_BNTS))
    return paddle.einsum("bnts,bsnh->btnh", weights_BNTS, v_BSNH)
