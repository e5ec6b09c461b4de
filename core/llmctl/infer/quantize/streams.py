"""Activations of the float and of the quantized model, carried from layer to layer.

Both have the residual of every token in memory, and for a moment what ``out`` or, without experts, ``down`` reads; never more than a
layer of weights.
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
from llmctl.infer.packed.model import Layer, Linear, Norm, PackedModel
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
        answers: For each window whether its tokens predict one of an answer, which only counts in the comparison; empty = all count.
    """

    windows: Sequence[Sequence[int]]
    roles: Sequence[Any]
    answers: Sequence[Sequence[bool]] = ()


@dataclass(frozen=True)
class Sublayer:
    """Attention, or a feed-forward layer without experts.

    Attributes:
        stage: That of its last linear.
        norm: The norm before or after it.
        first: Its first linear.
        between: From outputs of the first, in a chunk, to inputs of the last.
        last: Its last linear.
    """

    stage: str
    norm: Norm
    first: Matrix
    between: Callable[[Array, Chunk], Array]
    last: Matrix


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
        self.counts_T = np.concatenate(tokens.answers) if tokens.answers else np.ones(len(self.ids_T), bool)
        self.chunks = _chunks(graph, tokens, self.role_T)
        self.float_TD = self.quantized_TD = np.zeros((0, 0), np.float32)

    def embed(self, exact: PackedModel, quantized: PackedModel) -> None:
        """Starts both streams with the embeddings of models without layers."""
        self.float_TD, self.quantized_TD = self._embedded(exact), self._embedded(quantized)

    def walk(self, index: int, block: Block, choose: Choose, read: dict[str, Array] | None = None) -> Layer:
        """Computes a layer with both streams; returns it packed.

        Args:
            index: Number of the layer.
            block: Its weights, for the float stream.
            choose: Packs its linears, one after the other: each sees the inputs that those before it give.
            read: What ``scan`` returned, for this block; it is emptied. None = it is computed here.
        """
        graph, read = self.graph, {} if read is None else read

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
        attention = Sublayer(
            "out", block.norm, block.qkv, lambda y_TO, chunk: blocks.attend(graph, index, block, y_TO, chunk), block.out
        )
        out = self._through(attention, qkv, choose, read.pop("out", None))
        up = [
            choose("up", expert, weights, self._routed(block, inputs(block.ffn_norm), expert))
            for expert, weights in enumerate(block.up)
        ]
        if block.router is None:
            feed_forward = Sublayer(
                "down", block.ffn_norm, block.up[0], lambda y_TO, _: blocks.activate(graph, y_TO), block.down[0]
            )
            down = [self._through(feed_forward, up[0], choose, read.pop("down", None))]
        else:
            wide = [blocks.matrix(linear) for linear in up]
            routed = [self._routed(block, inputs(block.ffn_norm), expert) for expert in range(len(wide))]
            down = [
                choose("down", expert, weights, self._inner(block, wide[expert], routed[expert], expert))
                for expert, weights in enumerate(block.down)
            ]
            self._by_experts(block, replace(block, up=tuple(wide), down=tuple(map(blocks.matrix, down))))
        return Layer(
            block.norm, qkv, out, block.ffn_norm, tuple(up), tuple(down), block.router, block.q_norm, block.k_norm
        )

    def scan(self, index: int, block: Block, see: Callable[[str, int, Array, Array], None]) -> dict[str, Array]:
        """Shows the inputs of all stages of a layer in the float model, whose stream stays where it is.

        Args:
            index: Number of the layer.
            block: Its weights.
            see: Called with stage, expert, inputs, and what each row is for.

        Returns:
            The inputs [T, I] of ``out`` and, without experts, of ``down``.
        """
        graph, read = self.graph, {"out": self._rows_for(block.out)}
        if block.router is None:
            read["down"] = self._rows_for(block.down[0])
        for chunk in self.chunks:
            role, x_TD = self.role_T[chunk.rows], self.float_TD[chunk.rows]
            inner = blocks.sublayer_inputs(graph, block.norm, x_TD)
            see("qkv", 0, inner, role)
            mixed = blocks.attend(graph, index, block, block.qkv(inner), chunk)
            see("out", 0, mixed, role)
            read["out"][chunk.rows] = mixed
            x_TD = blocks.add(graph, block.norm, x_TD, inner, block.out(mixed))
            inner = blocks.sublayer_inputs(graph, block.ffn_norm, x_TD)
            see("up", 0, inner, role)
            chosen = None if block.router is None else blocks.route(graph, block.router, inner)[1]
            for expert, wide in enumerate(block.up):
                rows = slice(None) if chosen is None else chosen[:, expert]
                active = blocks.activate(graph, wide(inner[rows]))
                see("down", expert, active, role[rows])
                if chosen is None:
                    read["down"][chunk.rows] = active
        return read

    def _embedded(self, model: PackedModel) -> Array:
        embedded = np.empty((len(self.ids_T), self.graph.hidden), np.float32)
        into = None if model.project_in is None else blocks.matrix(model.project_in)
        for chunk in self.chunks:
            rows = blocks.normed(self.graph, model.embed_norm, model.token_vectors(self.ids_T[chunk.rows]))
            rows = rows if into is None else into(rows, chunk.rounds_T)
            embedded[chunk.rows] = rows if model.positions is None else rows + model.positions[chunk.position_T]
        return embedded

    def _through(self, sublayer: Sublayer, first: Linear, choose: Choose, float_TI: Array | None) -> Linear:
        """Moves both streams on behind a sublayer, and packs its last linear; what that reads is in memory only here.

        Args:
            sublayer: The sublayer.
            first: Its first linear, quantized.
            choose: Packs the last.
            float_TI: What the last reads in the float model; None = it is computed here.
        """
        if float_TI is None:
            float_TI = self._read(sublayer, self.float_TD, sublayer.first)
        quantized_TI = self._read(sublayer, self.quantized_TD, blocks.matrix(first))

        def pairs() -> Pairs:
            for chunk in self.chunks:
                yield float_TI[chunk.rows], quantized_TI[chunk.rows], self.role_T[chunk.rows]

        packed = choose(sublayer.stage, 0, sublayer.last, pairs)
        self._move(sublayer, self.float_TD, sublayer.last, float_TI)
        self._move(sublayer, self.quantized_TD, blocks.matrix(packed), quantized_TI)
        return packed

    def _read(self, sublayer: Sublayer, stream_TD: Array, first: Matrix) -> Array:
        """What the last linear reads."""
        read_TI = self._rows_for(sublayer.last)
        for chunk in self.chunks:
            inner = blocks.sublayer_inputs(self.graph, sublayer.norm, stream_TD[chunk.rows])
            read_TI[chunk.rows] = sublayer.between(first(inner, chunk.rounds_T), chunk)
        return read_TI

    def _move(self, sublayer: Sublayer, stream_TD: Array, last: Matrix, read_TI: Array) -> None:
        for chunk in self.chunks:
            x_TD = stream_TD[chunk.rows]
            inner = blocks.sublayer_inputs(self.graph, sublayer.norm, x_TD)
            y_TD = last(read_TI[chunk.rows], chunk.rounds_T)
            stream_TD[chunk.rows] = blocks.add(self.graph, sublayer.norm, x_TD, inner, y_TD)

    def _rows_for(self, linear: Matrix) -> Array:
        return np.empty((len(self.ids_T), len(linear.weight)), np.float32)

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

    def _by_experts(self, block: Block, packed: Block) -> None:
        """Moves both streams on behind a feed-forward layer of experts."""
        for chunk in self.chunks:
            for stream, weights in ((self.float_TD, block), (self.quantized_TD, packed)):
                x_TD = stream[chunk.rows]
                inner = blocks.sublayer_inputs(self.graph, block.ffn_norm, x_TD)
                y_TD = feed_forward(self.graph, weights, inner, chunk.rounds_T)
                stream[chunk.rows] = blocks.add(self.graph, block.ffn_norm, x_TD, inner, y_TD)


def chosen_rows(x_TI: Array, chosen_T: NDArray[np.bool_]) -> Array:
    """The rows that are chosen; no copy if all are."""
    return x_TI if chosen_T.all() else x_TI[chosen_T]


def feed_forward(graph: DecoderSpec, block: Block, inner_TD: Array, rounds_T: Array) -> Array:
    """The weighted sum of the outputs of experts."""
    assert block.router is not None, "experts have a router"
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
