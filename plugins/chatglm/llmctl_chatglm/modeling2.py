"""The ChatGLM2 and ChatGLM3 decoder: its own attention and MLP, on parts from ``llmctl.nn``. Letters as there."""

from __future__ import annotations

import paddle

from llmctl.nn.attention import attend, causal_bias
from llmctl.nn.causal_lm import CausalLM
from llmctl.nn.decoder import embedding, run_layers
from llmctl.nn.linear import Linear
from llmctl.nn.mlp import gated
from llmctl.nn.norm import RMSNorm
from llmctl.nn.position import Rotary, positions, rotate

THETA = 10000.0


class ChatGLM2ForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        super().__init__("chatglm2", ChatGLM2Decoder(dims), Linear(dims.hidden, dims.vocab, std=dims.init_std))


class ChatGLM2Decoder(paddle.nn.Layer):
    """Token ids to hidden states after the final norm."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.embedding = Embedding(dims)
        self.encoder = Stack(dims)
        self._rotary = Rotary(dims.head_dim // 2, THETA)

    def forward(self, input_ids_BT, attention_mask_BS=None, position_ids_BT=None, cache=None):
        new, past = input_ids_BT.shape[1], cache.length if cache is not None else 0
        if position_ids_BT is None:
            position_ids_BT = positions(new, past, attention_mask_BS)
        x_BTD = self.embedding.word_embeddings(input_ids_BT)
        angles = self._rotary(position_ids_BT, x_BTD.dtype)
        bias = causal_bias(new, past, attention_mask_BS, x_BTD.dtype)
        return self.encoder.final_layernorm(run_layers(self.encoder.layers, x_BTD, angles, bias, cache))


class Embedding(paddle.nn.Layer):
    """The table of token vectors, under the name it has in checkpoints."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.word_embeddings = embedding(dims.vocab, dims.hidden, dims.init_std)


class Stack(paddle.nn.Layer):
    """The blocks and the final norm, under the names they have in checkpoints."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.layers = paddle.nn.LayerList(ChatGLM2Block(dims) for _ in range(dims.layers))
        self.final_layernorm = RMSNorm(dims.hidden, dims.norm_eps)


class ChatGLM2Block(paddle.nn.Layer):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(dims.hidden, dims.norm_eps)
        self.self_attention = ChatGLM2Attention(dims)
        self.post_attention_layernorm = RMSNorm(dims.hidden, dims.norm_eps)
        self.mlp = ChatGLM2MLP(dims)

    def forward(self, x_BTD, angles, bias, cache=None, layer=0):
        x_BTD = x_BTD + self.self_attention(self.input_layernorm(x_BTD), angles, bias, cache, layer)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class ChatGLM2Attention(paddle.nn.Layer):
    """Grouped-query attention; the first half of each head turns, in pairs of neighbours."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.head_dim, self._groups = dims.head_dim, dims.heads // dims.kv_heads
        width = dims.heads * dims.head_dim
        self.query_key_value = Linear(dims.hidden, width + 2 * dims.kv_heads * dims.head_dim, True, dims.init_std)
        self.dense = Linear(width, dims.hidden, std=dims.init_std)

    def forward(self, x_BTD, angles, bias, cache, layer):
        packed = self.query_key_value(x_BTD).reshape([0, 0, -1, self.head_dim])
        kv_heads = packed.shape[2] // (self._groups + 2)
        q, k, v = paddle.split(packed, [self._groups * kv_heads, kv_heads, kv_heads], axis=2)
        q, k = _turn(q, angles), _turn(k, angles)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return self.dense(attend(q, k, v, bias))


class ChatGLM2MLP(paddle.nn.Layer):
    """SwiGLU with gate and up in one projection."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.dense_h_to_4h = Linear(dims.hidden, 2 * dims.ffn, std=dims.init_std)
        self.dense_4h_to_h = Linear(dims.ffn, dims.hidden, std=dims.init_std)

    def forward(self, x_BTD):
        return self.dense_4h_to_h(gated(*paddle.split(self.dense_h_to_4h(x_BTD), 2, axis=-1)))


def _turn(x_BTNH, angles):
    """The first half of each head turned. Pairs are left apart: scores do not see the order within a head."""
    first, rest = paddle.split(x_BTNH, 2, axis=-1)
    pairs = first.reshape([*first.shape[:3], -1, 2])
    apart = paddle.concat([pairs[..., 0], pairs[..., 1]], axis=-1)
    return paddle.concat([rotate(apart, *angles), rest], axis=-1)
