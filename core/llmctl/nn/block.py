"""One layer of a decoder. The stack of layers is in ``decoder``."""

from __future__ import annotations

import paddle

from llmctl.nn.attention import Angles
from llmctl.nn.cache import KVCache


class Block(paddle.nn.Layer):
    """x + attention(norm(x)), then x + mlp(norm(x)): the pre-norm block, with parts given by the family.

    Args:
        attention: Called with (x, angles, bias, cache, layer).
        mlp: Called with x.
        input_norm: Before attention.
        post_attention_norm: Before the MLP.
    """

    def __init__(
        self,
        attention: paddle.nn.Layer,
        mlp: paddle.nn.Layer,
        input_norm: paddle.nn.Layer,
        post_attention_norm: paddle.nn.Layer,
    ) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = mlp
        self.input_layernorm = input_norm
        self.post_attention_layernorm = post_attention_norm

    def forward(
        self,
        x_BTD: paddle.Tensor,
        angles: Angles | None,
        bias_B1TS: paddle.Tensor | None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> paddle.Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), angles, bias_B1TS, cache, layer)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
