"""The stack of a decoder with rotary positions: embedding, blocks, final norm. Heads are in the families' models."""

from __future__ import annotations

from collections.abc import Iterable

import paddle
from paddle.nn.initializer import Normal

from llmctl.nn.attention import causal_bias
from llmctl.nn.cache import KVCache
from llmctl.nn.position import Rotary, positions


def embedding(vocab: int, hidden: int, std: float) -> paddle.nn.Embedding:
    """A table [vocab, hidden] drawn from normal(0, std)."""
    return paddle.nn.Embedding(vocab, hidden, weight_attr=paddle.ParamAttr(initializer=Normal(0.0, std)))


class Decoder(paddle.nn.Layer):
    """Token ids to hidden states after the final norm.

    Args:
        embed_tokens: Token ids to vectors.
        layers: The blocks, called as in ``block``.
        norm: The final norm.
        rotary: Angles at positions.
    """

    def __init__(
        self,
        embed_tokens: paddle.nn.Layer,
        layers: Iterable[paddle.nn.Layer],
        norm: paddle.nn.Layer,
        rotary: Rotary,
    ) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.layers = paddle.nn.LayerList(layers)
        self.norm = norm
        self.rotary = rotary

    def forward(
        self,
        input_ids_BT: paddle.Tensor,
        attention_mask_BS: paddle.Tensor | None = None,
        position_ids_BT: paddle.Tensor | None = None,
        cache: KVCache | None = None,
    ) -> paddle.Tensor:
        new, past = input_ids_BT.shape[1], cache.length if cache is not None else 0
        x_BTD = self.embed_tokens(input_ids_BT)
        bias_B1TS = causal_bias(new, past, attention_mask_BS, x_BTD.dtype)
        if position_ids_BT is None:
            position_ids_BT = positions(new, past, attention_mask_BS)
        angles = self.rotary(position_ids_BT, x_BTD.dtype)
        for index, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, angles, bias_B1TS, cache, index)
        if cache is not None:
            cache.advance(new)
        return self.norm(x_BTD)
