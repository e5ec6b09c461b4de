"""The stack of a decoder: embedding, blocks, final norm. The output head is in ``causal_lm``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import paddle
from paddle.nn.initializer import Normal

from llmctl.nn.block import NAMES, Block
from llmctl.nn.cache import KVCache
from llmctl.nn.linear import Linear
from llmctl.nn.mask import Layout, Mask
from llmctl.nn.norm import RMSNorm
from llmctl.nn.symbolic import size

View = Callable[[paddle.Tensor, Layout, KVCache | None, str], tuple[Any, Mask | None]]


def embedding(vocab: int, hidden: int, std: float) -> paddle.nn.Embedding:
    """A table [vocab, hidden] drawn from normal(0, std)."""
    return paddle.nn.Embedding(vocab, hidden, weight_attr=paddle.ParamAttr(initializer=Normal(0.0, std)))


def run_layers(
    layers: Iterable[paddle.nn.Layer],
    x_BTD: paddle.Tensor,
    angles: Any,
    mask: Mask | None,
    cache: KVCache | None,
) -> paddle.Tensor:
    """x through the blocks in order; counts the new positions of the cache."""
    new = size(x_BTD, 1)
    for index, layer in enumerate(layers):
        x_BTD = layer(x_BTD, angles, mask, cache, index)
    if cache is not None:
        cache.advance(new)
    return x_BTD


class Decoder(paddle.nn.Layer):
    """Token ids to hidden states after the final norm.

    Args:
        embed_tokens: Token ids to vectors.
        layers: The blocks, called as in ``block``.
        norm: The final norm.
        rotary: Angles from (position_BT, dtype), as ``position.Rotary``; None = the blocks get none.
        mask: What the queries of a layout see.
        names: Names of the first three in the state dict; a dot puts a part into a folder of that name.
        dropout: Part of the vectors' elements that is left out in training.
        view: (input_ids_BT, layout, cache, dtype) -> (angles, mask) where they depend on tokens; instead of ``rotary`` and
            ``mask``.
    """

    def __init__(
        self,
        embed_tokens: paddle.nn.Layer,
        layers: Iterable[paddle.nn.Layer],
        norm: paddle.nn.Layer,
        rotary: Callable[[paddle.Tensor, str], Any] | None = None,
        mask: Callable[[Layout], Mask | None] = Layout.mask,
        names: tuple[str, str, str] = ("embed_tokens", "layers", "norm"),
        dropout: float = 0.0,
        view: View | None = None,
    ) -> None:
        super().__init__()
        for name, part in zip(names, (embed_tokens, paddle.nn.LayerList(layers), norm), strict=True):
            _put(self, name, part)
        self._parts, self.rotary, self.mask, self._dropout = attrgetter(*names), rotary, mask, dropout
        self._view = view

    @property
    def embedding_weight(self) -> paddle.Tensor:
        """The table of token vectors [V, D]."""
        return self._parts(self)[0].weight

    def forward(self, input_ids_BT: paddle.Tensor, layout: Layout, cache: KVCache | None = None) -> paddle.Tensor:
        embed, layers, norm = self._parts(self)
        x_BTD = embed(input_ids_BT)
        if self._dropout and self.training:
            x_BTD = paddle.nn.functional.dropout(x_BTD, self._dropout)
        view = self._view or self._by_position
        return norm(run_layers(layers, x_BTD, *view(input_ids_BT, layout, cache, x_BTD.dtype), cache))

    def _by_position(self, input_ids_BT: paddle.Tensor, layout: Layout, cache: KVCache | None, dtype: str) -> Any:
        angles = None if self.rotary is None else self.rotary(layout.position_BT, dtype)
        return angles, self.mask(layout)


def _put(layer: paddle.nn.Layer, path: str, part: paddle.nn.Layer) -> None:
    *folders, name = path.split(".")
    for folder in folders:
        if not hasattr(layer, folder):
            layer.add_sublayer(folder, paddle.nn.Layer())
        layer = getattr(layer, folder)
    layer.add_sublayer(name, part)


Maker = Callable[[], paddle.nn.Layer]


def decoder_of(
    dims: Any,
    attention: Maker,
    mlp: Maker,
    norm: Callable[[int, float], paddle.nn.Layer] = RMSNorm,
    block_names: tuple[str, str, str, str] = NAMES,
    carry: Callable[[paddle.Tensor, paddle.Tensor], paddle.Tensor] | None = None,
    **stack: Any,
) -> Decoder:
    """A decoder of like blocks, whose norms are of one kind.

    Args:
        dims: ``layers``, ``hidden``, ``vocab``, ``norm_eps`` and ``init_std`` of the model.
        attention: Makes the attention of a block.
        mlp: Makes its feed-forward layer.
        norm: Makes a norm from a width and what is added to the variance.
        block_names: As ``names`` of ``Block``.
        carry: As in ``Block``.
        **stack: As in ``Decoder``: ``rotary``, ``mask``, ``names``, ``dropout``, ``view``.
    """

    def block() -> Block:
        first, second = (norm(dims.hidden, dims.norm_eps) for _ in range(2))
        return Block(attention(), mlp(), first, second, block_names, carry)

    table, blocks = embedding(dims.vocab, dims.hidden, dims.init_std), (block() for _ in range(dims.layers))
    return Decoder(table, blocks, norm(dims.hidden, dims.norm_eps), **stack)


def head_of(dims: Any) -> Linear | None:
    """The output head; None where it is tied to the embedding."""
    return None if dims.tied else Linear(dims.hidden, dims.vocab, std=dims.init_std)
