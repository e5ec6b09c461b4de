"""The first Qwen's decoder: its own attention and feed-forward, on blocks from ``llmctl.nn``.

Letters as in ``llmctl.nn``.
"""

from __future__ import annotations

import math

import paddle

from llmctl.nn.attention import attend, causal_bias
from llmctl.nn.causal_lm import CausalLM
from llmctl.nn.decoder import embedding, run_layers
from llmctl.nn.frequencies import Rotation, Rule, plain
from llmctl.nn.linear import Linear
from llmctl.nn.mlp import gated
from llmctl.nn.norm import RMSNorm
from llmctl.nn.position import Rotary, positions, rotate


def _ntk(rotation, scaling):
    """A base that grows in steps each time the length doubles past the trained one."""
    alpha = 1.0
    if rotation.length > rotation.max_positions:
        alpha = 2.0 ** math.ceil(math.log2(rotation.length / rotation.max_positions) + 1) - 1
    theta = rotation.theta * alpha ** (rotation.head_dim / (rotation.head_dim - 2))
    return plain(Rotation(rotation.head_dim, theta), scaling)


NTK = {"rope_type": "ntk-steps"}
RULES = {"ntk-steps": Rule(_ntk, by_length=True)}


class QwenForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        super().__init__("qwen", QwenDecoder(dims), Linear(dims.hidden, dims.vocab, std=dims.init_std))


class QwenDecoder(paddle.nn.Layer):
    """Token ids to hidden states after the final norm. Training uses plain positions, whatever the length."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.wte = embedding(dims.vocab, dims.hidden, dims.init_std)
        self.h = paddle.nn.LayerList(QwenBlock(dims) for _ in range(dims.layers))
        self.ln_f = RMSNorm(dims.hidden, dims.norm_eps)
        self._plain = Rotary(dims.head_dim, dims.rope_theta)
        self.rotary = self._plain
        if dims.dynamic_ntk:
            self.rotary = Rotary(dims.head_dim, dims.rope_theta, NTK, dims.trained, RULES)
        self._log_n_beyond = dims.trained if dims.log_n else None

    def forward(self, input_ids_BT, attention_mask_BS=None, position_ids_BT=None, cache=None):
        new, past = input_ids_BT.shape[1], cache.length if cache is not None else 0
        x_BTD = self.wte(input_ids_BT)
        if position_ids_BT is None:
            position_ids_BT = positions(new, past, attention_mask_BS)
        cos, sin = (self._plain if self.training else self.rotary)(position_ids_BT, x_BTD.dtype)
        bias = causal_bias(new, past, attention_mask_BS, x_BTD.dtype)
        angles = cos, sin, self._query_scale(position_ids_BT, x_BTD.dtype)
        return self.ln_f(run_layers(self.h, x_BTD, angles, bias, cache))

    def _query_scale(self, position_BT, dtype):
        """log of the position to the base of the trained length, past that length [B, T, 1, 1]; None in training."""
        if self._log_n_beyond is None or self.training:
            return None
        place = (position_BT + 1).clip(min=self._log_n_beyond).astype("float64")
        return (place.log() / math.log(self._log_n_beyond)).astype(dtype).unsqueeze(-1).unsqueeze(-1)


class QwenBlock(paddle.nn.Layer):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(dims.hidden, dims.norm_eps)
        self.attn = QwenAttention(dims)
        self.ln_2 = RMSNorm(dims.hidden, dims.norm_eps)
        self.mlp = QwenMLP(dims)

    def forward(self, x_BTD, angles, bias, cache=None, layer=0):
        x_BTD = x_BTD + self.attn(self.ln_1(x_BTD), angles, bias, cache, layer)
        return x_BTD + self.mlp(self.ln_2(x_BTD))


class QwenAttention(paddle.nn.Layer):
    """Multi-head attention from one projection to queries, keys and values."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.head_dim, width = dims.head_dim, dims.heads * dims.head_dim
        self.c_attn = Linear(dims.hidden, 3 * width, True, dims.init_std)
        self.c_proj = Linear(width, dims.hidden, std=dims.init_std)

    def forward(self, x_BTD, angles, bias, cache, layer):
        cos, sin, query_scale = angles
        q, k, v = (part.reshape([0, 0, -1, self.head_dim]) for part in paddle.split(self.c_attn(x_BTD), 3, axis=-1))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if query_scale is not None:
            q = q * query_scale.expand(q.shape)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return self.c_proj(attend(q, k, v, bias))


class QwenMLP(paddle.nn.Layer):
    """c_proj(w1 x * silu(w2 x))."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.w1 = Linear(dims.hidden, dims.ffn, std=dims.init_std)
        self.w2 = Linear(dims.hidden, dims.ffn, std=dims.init_std)
        self.c_proj = Linear(dims.ffn, dims.hidden, std=dims.init_std)

    def forward(self, x_BTD):
        return self.c_proj(gated(self.w2(x_BTD), self.w1(x_BTD)))
