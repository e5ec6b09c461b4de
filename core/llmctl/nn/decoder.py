"""The stack of a decoder: embedding, blocks, final norm. The output head is in ``causal_lm``."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import paddle
from paddle.nn.initializer import Normal

from llmctl.nn.attention import Angles, causal_bias
from llmctl.nn.cache import KVCache
from llmctl.nn.position import Rotary, positions


def embedding(vocab: int, hidden: int, std: float) -> paddle.nn.Embedding:
    """A table [vocab, hidden] drawn from normal(0, std)."""
    return paddle.nn.Embedding(vocab, hidden, weight_attr=paddle.ParamAttr(initializer=Normal(0.0, std)))


Bias = Callable[[int, int, "paddle.Tensor | None", str], "paddle.Tensor | None"]
"""``causal_bias`` or what stands for it."""


def run_layers(
    layers: Iterable[paddle.nn.Layer],
    x_BTD: paddle.Tensor,
    angles: Angles | None,
    bias: paddle.Tensor | None,
    cache: KVCache | None,
) -> paddle.Tensor:
    """x through the blocks in order; counts the new positions of the cache."""
    new = x_BTD.shape[1]
    for index, layer in enumerate(layers):
        x_BTD = layer(x_BTD, angles, bias, cache, index)
    if cache is not None:
        cache.advance(new)
    return x_BTD


class Decoder(paddle.nn.Layer):
    """Token ids to hidden states after the final norm.

    Args:
        embed_tokens: Token ids to vectors.
        layers: The blocks, called as in ``block``.
        norm: The final norm.
        rotary: Angles at positions; None = the blocks get none.
        bias: What is added to scores.
    """

    def __init__(
        self,
        embed_tokens: paddle.nn.Layer,
        layers: Iterable[paddle.nn.Layer],
        norm: paddle.nn.Layer,
        rotary: Rotary | None,
        bias: Bias = causal_bias,
    ) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.layers = paddle.nn.LayerList(layers)
        self.norm = norm
        self.rotary = rotary
        self.bias = bias

    @property
    def embedding_weight(self) -> paddle.Tensor:
        """The table of token vectors [V, D]."""
        return self.embed_tokens.weight

    def forward(
        self,
        input_ids_BT: paddle.Tensor,
        attention_mask_BS: paddle.Tensor | None = None,
        position_ids_BT: paddle.Tensor | None = None,
        cache: KVCache | None = None,
    ) -> paddle.Tensor:
        new, past = input_ids_BT.shape[1], cache.length if cache is not None else 0
        x_BTD = self.embed_tokens(input_ids_BT)
        bias = self.bias(new, past, attention_mask_BS, x_BTD.dtype)
        angles = None
        if self.rotary is not None:
            if position_ids_BT is None:
                position_ids_BT = positions(new, past, attention_mask_BS)
            angles = self.rotary(position_ids_BT, x_BTD.dtype)
        return self.norm(run_layers(self.layers, x_BTD, angles, bias, cache))
