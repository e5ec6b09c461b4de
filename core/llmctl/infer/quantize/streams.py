"""Activations of the float and of the quantized model, carried from layer to layer.

Both have the residual of every token in memory, and for a moment what ``out`` reads; never more than a layer of weights.
Shape suffixes: T all tokens, D hidden, I inputs of a linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.infer.engine.positions import BidirectionalPrefix, PositionRule
from llmctl.infer.packed.model import Layer, Linear, PackedModel
from llmctl.infer.quantize import block as blocks
from llmctl.infer.quantize.block import Block, Chunk, Matrix

Array = NDArray[Any]

CALIBRATE, HOLD, CHECK = 0, 1, 2
"""What a token is for: sums over the inputs, checks of single linears, the comparison of both models at the end."""

CHUNK = 2048
"""Tokens that are computed together, at least."""

Pairs = Iterator[tuple[Array, Array, Array]]
"""Inputs of a linear in the float model and in the quantized one, and what each row is for."""

Choose = Callable[[str, int, Matrix, Callable[[], Pairs]], Linear]
"""Packs a linear: from its stage, its expert, its weights and its inputs, which it may read several times."""


@dataclass(frozen=True)
class Tokens:
    """Windows of tokens.

    Attributes:
        windows: Ids of each window.
        roles: What each window is for: a value, or one for each of its tokens.
    """

    windows: Sequence[Sequence[int]]
    roles: Sequence[Any]


class Streams:
    """The residuals of all tokens.

    Args:
        graph: The model.
        tokens: The windows.
    """

    def __init__(self, graph: DecoderSpec, tokens: Tokens) -> None:
        self.graph = graph
        self.ids_T = np.concatenate([np.asarray(window, np.int64) for window in tokens.windows])
        self.role_T = np.concatenate(
            [np.broadcast_to(role, len(window)) for window, role in zip(tokens.windows, tokens.roles, strict=True)]
        ).astype(np.int8)
        self.chunks = _chunks(graph, tokens, self.role_T)
        self.float_TD = self.quantized_TD = np.zeros((0, 0), np.float32)

    def embed(self, exact: PackedModel, quantized: PackedModel) -> None:
        """Starts both streams with the embeddings of models without layers."""
        self.float_TD, self.quantized_TD = self._embedded(exact), self._embedded(quantized)

    def walk(self, index: int, block: Block, choose: Choose) -> Layer:
        """Computes a layer with both streams; returns it packed.

        Args:
            index: Number of the layer.
            block: Its weights, for the float stream.
            choose: Packs its linears, one after the other: each sees the inputs that those before it give.
        """
        graph = self.graph

        def inputs(norm: Any) -> Callable[[], Pairs]:
            return lambda: (
                (
                    blocks.sublayer_inputs(graph, norm, self.float_TD[chunk.rows]),
                    blocks.sublayer_inputs(graph, norm, self.quantized_TD[chunk.rows]),
                    self.role_T[chunk.rows],
                )
                for chunk in self.chunks
            )

        qkv = choose("qkv", 0, block.qkv, inputs(block.norm))
        out = self._attention(index, block, blocks.matrix(qkv), choose)
        up = [
            choose("up", expert, weights, self._routed(block, inputs(block.ffn_norm), expert))
            for expert, weights in enumerate(block.up)
        ]
        wide = [blocks.matrix(linear) for linear in up]
        down = [
            choose("down", e, weights, self._inner(block, wide[e], self._routed(block, inputs(block.ffn_norm), e), e))
            for e, weights in enumerate(block.down)
        ]
        packed = replace(block, up=tuple(wide), down=tuple(blocks.matrix(linear) for linear in down))
        self._fed(block, packed)
        return Layer(
            block.norm, qkv, out, block.ffn_norm, tuple(up), tuple(down), block.router, block.q_norm, block.k_norm
        )

    def scan(self, index: int, block: Block, see: Callable[[str, int, Array, Array], None]) -> None:
        """Shows the inputs of all stages of a layer in the float model, whose stream stays where it is.

        Args:
            index: Number of the layer.
            block: Its weights.
            see: Called with stage, expert, inputs, and what each row is for.
        """
        graph = self.graph
        for chunk in self.chunks:
            role, x_TD = self.role_T[chunk.rows], self.float_TD[chunk.rows]
            inner = blocks.sublayer_inputs(graph, block.norm, x_TD)
            see("qkv", 0, inner, role)
            mixed = blocks.attend(graph, index, block, block.qkv(inner), chunk)
            see("out", 0, mixed, role)
            x_TD = blocks.add(graph, block.norm, x_TD, inner, block.out(mixed))
            inner = blocks.sublayer_inputs(graph, block.ffn_norm, x_TD)
            see("up", 0, inner, role)
            chosen = None if block.router is None else blocks.route(graph, block.router, inner)[1]
            for expert, wide in enumerate(block.up):
                rows = slice(None) if chosen is None else chosen[:, expert]
                see("down", expert, blocks.activate(graph, wide(inner[rows])), role[rows])

    def _embedded(self, model: PackedModel) -> Array:
        embedded = np.empty((len(self.ids_T), self.graph.hidden), np.float32)
        into = None if model.project_in is None else blocks.matrix(model.project_in)
        for chunk in self.chunks:
            rows = blocks.normed(self.graph, model.embed_norm, model.token_vectors(self.ids_T[chunk.rows]))
            rows = rows if into is None else into(rows, chunk.rounds_T)
            embedded[chunk.rows] = rows if model.positions is None else rows + model.positions[chunk.position_T]
        return embedded

    def _attention(self, index: int, block: Block, qkv: Matrix, choose: Choose) -> Linear:
        """Moves both streams on behind attention; what ``out`` reads is in memory only here."""
        mixed_TI = self._mixed(index, block, qkv)
        out = choose("out", 0, block.out, lambda: self._rows(*mixed_TI))
        self._attended(block, blocks.matrix(out), *mixed_TI)
        return out

    def _rows(self, float_TI: Array, quantized_TI: Array) -> Pairs:
        for chunk in self.chunks:
            yield float_TI[chunk.rows], quantized_TI[chunk.rows], self.role_T[chunk.rows]

    def _mixed(self, index: int, block: Block, qkv: Matrix) -> tuple[Array, Array]:
        """What ``out`` reads, in both models."""
        graph = self.graph
        shape = len(self.ids_T), graph.heads * graph.head_dim
        float_TI, quantized_TI = np.empty(shape, np.float32), np.empty(shape, np.float32)
        for chunk in self.chunks:
            inner = blocks.sublayer_inputs(graph, block.norm, self.float_TD[chunk.rows])
            float_TI[chunk.rows] = blocks.attend(graph, index, block, block.qkv(inner), chunk)
            inner = blocks.sublayer_inputs(graph, block.norm, self.quantized_TD[chunk.rows])
            quantized_TI[chunk.rows] = blocks.attend(graph, index, block, qkv(inner, chunk.rounds_T), chunk)
        return float_TI, quantized_TI

    def _attended(self, block: Block, out: Matrix, float_TI: Array, quantized_TI: Array) -> None:
        for chunk in self.chunks:
            for stream, mixed, weights, rounds in (
                (self.float_TD, float_TI, block.out, None),
                (self.quantized_TD, quantized_TI, out, chunk.rounds_T),
            ):
                x_TD = stream[chunk.rows]
                inner = blocks.sublayer_inputs(self.graph, block.norm, x_TD)
                y_TD = weights(mixed[chunk.rows], rounds)
                stream[chunk.rows] = blocks.add(self.graph, block.norm, x_TD, inner, y_TD)

    def _routed(self, block: Block, pairs: Callable[[], Pairs], expert: int) -> Callable[[], Pairs]:
        """The inputs of an expert, of tokens that the quantized model sends to it."""
        if block.router is None:
            return pairs
        router = block.router

        def routed() -> Pairs:
            for exact, quantized, role in pairs():
                rows = blocks.route(self.graph, router, quantized)[1][:, expert]
                yield exact[rows], quantized[rows], role[rows]

        return routed

    def _inner(self, block: Block, wide: Matrix, pairs: Callable[[], Pairs], expert: int) -> Callable[[], Pairs]:
        def inner() -> Pairs:
            for exact, quantized, role in pairs():
                yield (
                    blocks.activate(self.graph, block.up[expert](exact)),
                    blocks.activate(self.graph, wide(quantized, role == CHECK)),
                    role,
                )

        return inner

    def _fed(self, block: Block, packed: Block) -> None:
        for chunk in self.chunks:
            for stream, weights, rounds in (
                (self.float_TD, block, np.zeros_like(chunk.rounds_T)),
                (self.quantized_TD, packed, chunk.rounds_T),
            ):
                x_TD = stream[chunk.rows]
                inner = blocks.sublayer_inputs(self.graph, block.ffn_norm, x_TD)
                y_TD = feed_forward(self.graph, weights, inner, rounds)
                stream[chunk.rows] = blocks.add(self.graph, block.ffn_norm, x_TD, inner, y_TD)


def feed_forward(graph: DecoderSpec, block: Block, inner_TD: Array, rounds_T: Array) -> Array:
    """The outputs of the feed-forward layer, or the weighted sum of those of its experts."""
    if block.router is None:
        return block.down[0](blocks.activate(graph, block.up[0](inner_TD, rounds_T)), rounds_T)
    y_TD = np.zeros_like(inner_TD)
    weight_TE, chosen_TE = blocks.route(graph, block.router, inner_TD)
    for expert, (up, down) in enumerate(zip(block.up, block.down, strict=True)):
        rows = chosen_TE[:, expert]
        if rows.any():
            wide = blocks.activate(graph, up(inner_TD[rows], rounds_T[rows]))
            y_TD[rows] += weight_TE[rows, expert, None] * down(wide, rounds_T[rows])
    return y_TD


def _chunks(graph: DecoderSpec, tokens: Tokens, role_T: Array) -> list[Chunk]:
    rule, groups = PositionRule(graph), list[list[Sequence[int]]]([[]])
    for window in tokens.windows:
        if sum(map(len, groups[-1])) >= CHUNK:
            groups.append([])
        groups[-1].append(window)
    chunks, done = [], 0
    for group in groups:
        bounds = np.cumsum([0, *map(len, group)])
        windows = [slice(int(a), int(b)) for a, b in zip(bounds, bounds[1:], strict=False)]
        prefixes: list[tuple[slice, BidirectionalPrefix]] = []
        for ids, window in zip(group, windows, strict=True):
            prefix = rule.prefix(ids)
            if prefix is not None:
                prefixes.append((window, prefix))
        place = np.concatenate([np.arange(len(ids), dtype=np.int32) for ids in group])
        position, second, begin, end = rule.arrays(place, prefixes)
        rows = slice(done, done + len(place))
        chunks.append(Chunk(rows, position, second, windows, begin, end, role_T[rows] == CHECK))
        done = rows.stop
    return chunks
