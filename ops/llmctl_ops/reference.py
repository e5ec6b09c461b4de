"""Reference implementation of each operator in paddle's own operations: for any dtype, any device, and programs being traced.

The compiled operators are tested against these, which are also the fallback. They are written for clarity, not for speed.
"""

from __future__ import annotations

import math

import paddle
from paddle.nn import functional as F


def attention(q_BTNH, k_BSKH, v_BSKH, first, last, past, scale, slopes=None, key_positions=None):
    """``llmctl_ops.attention``."""
    _, queries, heads, _ = q_BTNH.shape
    repeats = heads // k_BSKH.shape[2]
    k_BSNH = paddle.repeat_interleave(k_BSKH, repeats, axis=2) if repeats > 1 else k_BSKH
    v_BSNH = paddle.repeat_interleave(v_BSKH, repeats, axis=2) if repeats > 1 else v_BSKH
    scores_BNTS = scale * paddle.einsum("btnh,bsnh->bnts", q_BTNH, k_BSNH)
    if key_positions is not None:
        scores_BNTS = scores_BNTS + slopes.reshape([1, -1, 1, 1]) * key_positions.unsqueeze([1, 2])
    query_T1 = paddle.arange(past, past + queries, dtype="int32").unsqueeze(-1)
    visible_BTS = paddle.logical_and(first.unsqueeze(1) <= query_T1, query_T1 < last.unsqueeze(1))
    visible_BNTS = visible_BTS.unsqueeze(1).expand_as(scores_BNTS)
    weights_BNTS = F.softmax(paddle.where(visible_BNTS, scores_BNTS, paddle.full_like(scores_BNTS, -1e30)), axis=-1)
    weights_BNTS = paddle.where(visible_BNTS, weights_BNTS, paddle.zeros_like(weights_BNTS))
    return paddle.einsum("bnts,bsnh->btnh", weights_BNTS, v_BSNH)


def rms_norm(x, weight, eps):
    """``llmctl_ops.rms_norm``; the mean square of a half-precision x is taken in float32."""
    wide = x.astype("float32") if x.dtype in (paddle.float16, paddle.bfloat16) else x
    return (wide * paddle.rsqrt((wide * wide).mean(axis=-1, keepdim=True) + eps)).astype(x.dtype) * weight


def layer_norm(x, weight, bias, eps):
    """``llmctl_ops.layer_norm``."""
    centered = x - x.mean(axis=-1, keepdim=True)
    return centered * paddle.rsqrt((centered * centered).mean(axis=-1, keepdim=True) + eps) * weight + bias


def add_bias(x, bias):
    """``llmctl_ops.add_bias``."""
    return x + bias


def gelu_tanh(x):
    """``llmctl_ops.gelu_tanh``."""
    return x / 2 * (1 + paddle.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))


def rope(x_BTNH, cos_BT1H, sin_BT1H):
    """``llmctl_ops.rope``."""
    low, high = paddle.split(x_BTNH, 2, axis=-1)
    return x_BTNH * cos_BT1H + paddle.concat([-high, low], axis=-1) * sin_BT1H


def swiglu(gate, up=None):
    """``llmctl_ops.swiglu``."""
    gate, up = paddle.split(gate, 2, axis=-1) if up is None else (gate, up)
    return F.silu(gate) * up


def cross_entropy(logits_NV, labels_N, overwrite=False):
    """``llmctl_ops.cross_entropy``."""
    target_N = paddle.take_along_axis(logits_NV, labels_N.unsqueeze(1), axis=1).squeeze(1)
    return (paddle.logsumexp(logits_NV, axis=1) - target_N).sum()


@paddle.no_grad()
def adamw(weight, grad, moment1, moment2, lr, powers, betas, eps, weight_decay):
    """``llmctl_ops.adamw``."""
    moment1.scale_(betas[0]).add_(grad * (1 - betas[0]))
    moment2.scale_(betas[1]).add_(grad * grad * (1 - betas[1]))
    denominator = paddle.sqrt(moment2 / (1 - powers[1])) + eps
    weight.scale_(1 - lr * weight_decay)
    weight.subtract_(moment1 / denominator * (lr / (1 - powers[0])))


def sum_squares(tensors):
    """``llmctl_ops.sum_squares``."""
    return float(sum(float(tensor.astype("float64").square().sum()) for tensor in tensors))
