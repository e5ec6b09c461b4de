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

AttentionInputs = Callable[[paddle.Tensor, Layout, KVCache | None, str], tuple[Any, Mask | None]]
"""(input_ids_BT, layout, cache, dtype) -> (cos_sin, mask) of all layers."""


def embedding(vocab: int, hidden: int, std: float) -> paddle.nn.Embedding:
    """A table [vocab, hidden] drawn from normal(0, std)."""
    return paddle.nn.Embedding(vocab, hidden, weight_attr=paddle.ParamAttr(initializer=Normal(0.0, std)))


def run_layers(
    layers: Iterable[paddle.nn.Layer],
    x_BTD: paddle.Tensor,
    cos_sin: Any,
    mask: Mask | None,
    cache: KVCache | None,
) -> paddle.Tensor:
    """x through the blocks in order; then advances the cache by the new positions."""
    new = size(x_BTD, 1)
    for index, layer in enumerate(layers):
        x_BTD = layer(x_BTD, cos_sin, mask, cache, index)
    if cache is not None:
        cache.advance(new)
    return x_BTD


class Stack(paddle.nn.Layer):
    """Token ids to hidden states in three parts: ``begin``, ``blocks``, ``end``.

    A family whose decoder is not a ``Decoder`` writes these three and ``embedding_weight``, the embedding table [V, D];
    ``inputs`` too, where its blocks need more than the mask.
    """

    embedding_weight: paddle.Tensor

    def begin(self, input_ids_BT: paddle.Tensor, layout: Layout) -> paddle.Tensor:
        """The input of the first block."""
        raise NotImplementedError

    @property
    def blocks(self) -> paddle.nn.LayerList:
        """The blocks in order, called as ``Block``."""
        raise NotImplementedError

    def end(self, x_BTD: paddle.Tensor) -> paddle.Tensor:
        """Hidden states from the output of the last block."""
        raise NotImplementedError

    def inputs(
        self, input_ids_BT: paddle.Tensor, layout: Layout, cache: KVCache | None, dtype: str
    ) -> tuple[Any, Mask | None]:
        """What every block is given besides x: (cos_sin, mask)."""
        return None, layout.mask()

    def forward(self, input_ids_BT: paddle.Tensor, layout: Layout, cache: KVCache | None = None) -> paddle.Tensor:
        x_BTD = self.begin(input_ids_BT, layout)
        return self.end(self.run_blocks(x_BTD, *self.inputs(input_ids_BT, layout, cache, x_BTD.dtype), cache))

    def run_blocks(self, x_BTD: paddle.Tensor, cos_sin: Any, mask: Mask | None, cache: KVCache | None) -> paddle.Tensor:
        """x through the blocks."""
        return run_layers(self.blocks, x_BTD, cos_sin, mask, cache)


class Decoder(Stack):
    """Token ids to hidden states after the final norm.

    Args:
        embed_tokens: Token ids to embeddings.
        layers: The blocks, called as ``Block``.
        norm: The final norm.
        rotary: (position_BT, dtype) -> cosines and sines, as ``Rotary``; None = no RoPE.
        mask: The attention mask of a layout.
        names: Names of the first three in the state dict; a dot nests them in a sublayer of that name.
        dropout: Dropout of the embeddings in training.
        attention_inputs: (input_ids_BT, layout, cache, dtype) -> (cos_sin, mask) where they depend on the tokens; instead
            of ``rotary`` and ``mask``.
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
        attention_inputs: AttentionInputs | None = None,
    ) -> None:
        super().__init__()
        for name, sublayer in zip(names, (embed_tokens, paddle.nn.LayerList(layers), norm), strict=True):
            _add_nested(self, name, sublayer)
        self._sublayers, self.rotary, self.mask, self._dropout = attrgetter(*names), rotary, mask, dropout
        self._attention_inputs = attention_inputs

    @property
    def embedding_weight(self) -> paddle.Tensor:  # type: ignore[override]
        """The embedding table [V, D]."""
        return self._sublayers(self)[0].weight

    @property
    def blocks(self) -> paddle.nn.LayerList:
        """The blocks in order."""
        return self._sublayers(self)[1]

    def begin(self, input_ids_BT: paddle.Tensor, layout: Layout) -> paddle.Tensor:
        """The embeddings, with dropout in training."""
        x_BTD = self._sublayers(self)[0](input_ids_BT)
        if self._dropout and self.training:
            x_BTD = paddle.nn.functional.dropout(x_BTD, self._dropout)
        return x_BTD

    def inputs(
        self, input_ids_BT: paddle.Tensor, layout: Layout, cache: KVCache | None, dtype: str
    ) -> tuple[Any, Mask | None]:
        """Cosines and sines of the positions, and the mask; or what ``attention_inputs`` returns."""
        if self._attention_inputs is not None:
            return self._attention_inputs(input_ids_BT, layout, cache, dtype)
        cos_sin = None if self.rotary is None else self.rotary(layout.position_BT, dtype)
        return cos_sin, self.mask(layout)

    def end(self, x_BTD: paddle.Tensor) -> paddle.Tensor:
        """The final norm."""
        return self._sublayers(self)[2](x_BTD)


def _add_nested(layer: paddle.nn.Layer, path: str, sublayer: paddle.nn.Layer) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(layer, parent):
            layer.add_sublayer(parent, paddle.nn.Layer())
        layer = getattr(layer, parent)
    layer.add_sublayer(name, sublayer)


Maker = Callable[[], paddle.nn.Layer]


def decoder_of(
    dims: Any,
    attention: Maker,
    mlp: Maker,
    norm: Callable[[int, float], paddle.nn.Layer] = RMSNorm,
    block_names: tuple[str, str, str, str] = NAMES,
    residual: Callable[[paddle.Tensor, paddle.Tensor], paddle.Tensor] | None = None,
    **stack: Any,
) -> Decoder:
    """A decoder of identical blocks, with norms of one kind.

    Args:
        dims: ``layers``, ``hidden``, ``vocab``, ``norm_eps`` and ``init_std`` of the model.
        attention: Makes the attention of a block.
        mlp: Makes its feed-forward layer.
        norm: Makes a norm from hidden size and epsilon.
        block_names: As ``names`` of ``Block``.
        residual: As in ``Block``.
        **stack: As in ``Decoder``: ``rotary``, ``mask``, ``names``, ``dropout``, ``attention_inputs``.
    """

    def block() -> Block:
        first, second = (norm(dims.hidden, dims.norm_eps) for _ in range(2))
        return Block(attention(), mlp(), first, second, block_names, residual)

    table, blocks = embedding(dims.vocab, dims.hidden, dims.init_std), (block() for _ in range(dims.layers))
    return Decoder(table, blocks, norm(dims.hidden, dims.norm_eps), **stack)


def head_of(dims: Any) -> Linear | None:
    """The output head; None where it is tied to the embedding."""
    return None if dims.tied else Linear(dims.hidden, dims.vocab, std=dims.init_std)
