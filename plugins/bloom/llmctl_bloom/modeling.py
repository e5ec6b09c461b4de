"""The Bloom decoder: its own attention and block, on parts from ``llmctl.nn``. Letters as there."""

from __future__ import annotations

import paddle

from llmctl.nn.alibi import AlibiBias
from llmctl.nn.attention import attend
from llmctl.nn.causal_lm import CausalLM
from llmctl.nn.decoder import embedding, run_layers
from llmctl.nn.linear import Linear
from llmctl.nn.mlp import MLP, gelu_tanh


class BloomForCausalLM(CausalLM):
    """Token ids to logits.

    Args:
        dims: What the card reads from ``config.json``.
    """

    def __init__(self, dims) -> None:
        super().__init__("bloom", BloomDecoder(dims), None)


class BloomDecoder(paddle.nn.Layer):
    """Token ids to hidden states after the final norm. Positions come from the mask alone."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.word_embeddings = embedding(dims.vocab, dims.hidden, dims.init_std)
        self.word_embeddings_layernorm = _norm(dims)
        self.h = paddle.nn.LayerList(BloomBlock(dims) for _ in range(dims.layers))
        self.ln_f = _norm(dims)
        self.bias = AlibiBias(dims.heads)

    @property
    def embedding_weight(self) -> paddle.Tensor:
        """The table of token vectors [V, D]."""
        return self.word_embeddings.weight

    def forward(self, input_ids_BT, attention_mask_BS=None, position_ids_BT=None, cache=None):
        new, past = input_ids_BT.shape[1], cache.length if cache is not None else 0
        x_BTD = self.word_embeddings_layernorm(self.word_embeddings(input_ids_BT))
        bias_BNTS = self.bias(new, past, attention_mask_BS, x_BTD.dtype)
        return self.ln_f(run_layers(self.h, x_BTD, None, bias_BNTS, cache))


class BloomBlock(paddle.nn.Layer):
    """Attention and MLP, each after a norm; the residual is taken before the norm, or after it where the dims say so."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.input_layernorm = _norm(dims)
        self.self_attention = BloomAttention(dims)
        self.post_attention_layernorm = _norm(dims)
        self.mlp = MLP(dims.hidden, dims.ffn, gelu_tanh, ("dense_h_to_4h", "dense_4h_to_h"), dims.init_std)
        self._post_norm_residual = dims.post_norm_residual

    def forward(self, x_BTD, angles, bias, cache=None, layer=0):
        normed = self.input_layernorm(x_BTD)
        residual = normed if self._post_norm_residual else x_BTD
        x_BTD = residual + self.self_attention(normed, bias, cache, layer)
        normed = self.post_attention_layernorm(x_BTD)
        return (normed if self._post_norm_residual else x_BTD) + self.mlp(normed)


class BloomAttention(paddle.nn.Layer):
    """Multi-head attention from one projection that holds query, key and value of a head side by side."""

    def __init__(self, dims) -> None:
        super().__init__()
        self.head_dim, width = dims.head_dim, dims.heads * dims.head_dim
        self.query_key_value = Linear(dims.hidden, 3 * width, True, dims.init_std)
        self.dense = Linear(width, dims.hidden, True, dims.init_std)

    def forward(self, x_BTD, bias, cache, layer):
        packed = self.query_key_value(x_BTD).reshape([0, 0, -1, 3 * self.head_dim])
        q, k, v = paddle.split(packed, 3, axis=-1)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return self.dense(attend(q, k, v, bias))


def _norm(dims) -> paddle.nn.LayerNorm:
    return paddle.nn.LayerNorm(dims.hidden, epsilon=dims.norm_eps)
