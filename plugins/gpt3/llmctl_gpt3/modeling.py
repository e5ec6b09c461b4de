"""The GPT decoder: its own attention and block, on parts from ``llmctl.nn``. Letters as there."""

from __future__ import annotations

import paddle

from llmctl.nn.attention import attend, causal_bias
from llmctl.nn.causal_lm import CausalLM
from llmctl.nn.decoder import embedding, run_layers
from llmctl.nn.linear import Linear
from llmctl.nn.mlp import MLP, gelu_tanh
from llmctl.nn.position import positions


class GPTForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        super().__init__("gpt", GPTDecoder(dims), None)


class GPTDecoder(paddle.nn.Layer):
    """Token ids to hidden states after the final norm."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.wte = embedding(dims.vocab, dims.hidden, dims.init_std)
        self.wpe = embedding(dims.max_positions, dims.hidden, dims.init_std)
        self.drop = paddle.nn.Dropout(dims.embedding_dropout)
        self.h = paddle.nn.LayerList(GPTBlock(dims, layer) for layer in range(dims.layers))
        self.ln_f = _norm(dims)

    @property
    def embedding_weight(self) -> paddle.Tensor:
        """The table of token vectors [V, D]."""
        return self.wte.weight

    def forward(self, input_ids_BT, attention_mask_BS=None, position_ids_BT=None, cache=None):
        new, past = input_ids_BT.shape[1], cache.length if cache is not None else 0
        if position_ids_BT is None:
            position_ids_BT = positions(new, past, attention_mask_BS)
        x_BTD = self.drop(self.wte(input_ids_BT) + self.wpe(position_ids_BT))
        bias = causal_bias(new, past, attention_mask_BS, x_BTD.dtype)
        return self.ln_f(run_layers(self.h, x_BTD, None, bias, cache))


class GPTBlock(paddle.nn.Layer):
    """x + attention(norm(x)), then x + mlp(norm(x)), with dropout on what is added."""

    def __init__(self, dims, layer: int) -> None:
        super().__init__()
        self.ln_1 = _norm(dims)
        self.attn = GPTAttention(dims, layer)
        self.ln_2 = _norm(dims)
        self.mlp = MLP(dims.hidden, dims.ffn, gelu_tanh, ("c_fc", "c_proj"), dims.init_std)
        self.drop = paddle.nn.Dropout(dims.residual_dropout)

    def forward(self, x_BTD, angles, bias, cache=None, layer=0):
        x_BTD = x_BTD + self.drop(self.attn(self.ln_1(x_BTD), bias, cache, layer))
        return x_BTD + self.drop(self.mlp(self.ln_2(x_BTD)))


class GPTAttention(paddle.nn.Layer):
    """Multi-head attention from one projection; scores may be divided by the layer's number too, or not scaled."""

    def __init__(self, dims, layer: int) -> None:
        super().__init__()
        self.head_dim, width = dims.head_dim, dims.heads * dims.head_dim
        self.c_attn = Linear(dims.hidden, 3 * width, True, dims.init_std)
        self.c_proj = Linear(width, dims.hidden, True, dims.init_std)
        self._scale = (1.0 if dims.scaled else dims.head_dim**0.5) / (layer + 1 if dims.scaled_by_layer else 1)
        self._dropout = dims.attention_dropout

    def forward(self, x_BTD, bias, cache, layer):
        q, k, v = (part.reshape([0, 0, -1, self.head_dim]) for part in paddle.split(self.c_attn(x_BTD), 3, axis=-1))
        if cache is not None:
            k, v = cache.update(layer, k, v)
        dropout = self._dropout if self.training else 0.0
        return self.c_proj(attend(q * self._scale, k, v, bias, dropout))


def _norm(dims) -> paddle.nn.LayerNorm:
    return paddle.nn.LayerNorm(dims.hidden, epsilon=dims.norm_eps)
