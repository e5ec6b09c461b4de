"""A decoder and its head from the dims of a model and what families differ in. The parts are in the other modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle

from llmctl.nn.block import NAMES, Block
from llmctl.nn.decoder import Decoder, embedding
from llmctl.nn.linear import Linear
from llmctl.nn.norm import RMSNorm

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
