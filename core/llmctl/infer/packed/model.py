"""A model as executors take it: every linear packed (``linear.Weight``), everything else float32 arrays.

Made by ``pack``; the arrays of a packed folder are views of the mapped file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.checkpoint.formats.dtypes import widen
from llmctl.infer.packed.linear import PackedLinear, Weight, parts_of, rows

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Norm:
    """Weight and, of a LayerNorm, bias [hidden]."""

    weight: Float
    bias: Float | None = None


@dataclass(frozen=True)
class Linear:
    """A packed weight [in, out] and its bias [out]."""

    weight: Weight
    bias: Float | None = None

    @property
    def parts(self) -> list[tuple[PackedLinear, Float | None]]:
        """The weights of one kind each whose outputs follow each other, with their biases."""
        weights = parts_of(self.weight)
        if self.bias is None:
            return [(weight, None) for weight in weights]
        ends = np.cumsum([weight.outputs for weight in weights])
        return [*zip(weights, np.split(self.bias, ends[:-1]), strict=True)]


@dataclass(frozen=True)
class Layer:
    """One layer of a decoder.

    The outputs of ``qkv`` are all queries, then all keys, then all values, head by head. Within a head RoPE pairs are elements
    i and i + rotary_dim/2 of the first ``rope.rotary_dim``. The score scale is not folded into the weights. The outputs of
    ``up`` of a gated layer are gate, then up.

    Attributes:
        up: One, or one for each expert.
        down: As ``up``.
        router: [experts, hidden]; None = one feed-forward layer.
        q_norm: Weight of the per-head norm of queries [head_dim], in the order of the packed elements.
        k_norm: As ``q_norm``, of keys.
    """

    norm: Norm
    qkv: Linear
    out: Linear
    ffn_norm: Norm
    up: tuple[Linear, ...]
    down: tuple[Linear, ...]
    router: Float | None = None
    q_norm: Float | None = None
    k_norm: Float | None = None

    @property
    def linears(self) -> tuple[Linear, ...]:
        """All linears."""
        return (self.qkv, self.out, *self.up, *self.down)


@dataclass(frozen=True)
class LoraDelta:
    """The LoRA delta of a packed linear: y += (x a) b, with the scale folded into ``b``. Where a packed linear fuses several
    layers, their A matrices are concatenated, and their B matrices are the blocks of a block-diagonal matrix.

    Attributes:
        a: [in, rank].
        b: [rank, out], in the order of the packed linear's outputs.
    """

    a: Float
    b: Float


@dataclass(frozen=True)
class PackedAdapter:
    """A LoRA adapter of a packed model.

    Attributes:
        name: What requests call it.
        deltas: (layer, ``qkv`` | ``out`` | ``up`` | ``down``, expert or 0) -> its delta.
    """

    name: str
    deltas: dict[tuple[int, str, int], LoraDelta]


@dataclass(frozen=True)
class StageFold:
    """Scales and offsets that became part of a layer when it was quantized: a stage reads (x - offset) / scale.

    Attributes:
        layer: Number of the layer.
        stage: The linear that reads it: ``qkv``, ``out``, ``up`` or ``down``.
        expert: Of ``down``; 0 otherwise.
        scale: [in].
        offset: [in]; None = no offsets.
    """

    layer: int
    stage: str
    expert: int
    scale: Float
    offset: Float | None = None


@dataclass(frozen=True)
class PackedModel:
    """The whole model.

    Attributes:
        graph: What is computed.
        embed: Token embeddings: an array [vocab, embed] of float32, float16, or bfloat16 as uint16; or a packed weight [embed, vocab],
            whose outputs are the tokens. That of a tied head is the same object.
        positions: Position embeddings, row 0 = position 0 [max_positions, hidden]; None = no such table.
        embed_norm: Norm of token embeddings, before anything is added [embed].
        project_in: [embed, hidden].
        project_out: [hidden, embed].
        final_norm: The norm after the layers; None = no such norm.
        head: [hidden or embed, vocab].
        layers: In order.
        adapters: Sequences choose among them by index.
        prefix: Keys and values of virtual tokens [layers, 2, P, kv_heads, head_dim], keys with RoPE applied, in the order of the
            packed elements; None = no prefix.
        folds: What was folded into the layers; adapters of the float model are changed accordingly.
    """

    graph: DecoderSpec
    embed: NDArray[np.generic] | PackedLinear
    head: Linear
    layers: tuple[Layer, ...]
    final_norm: Norm | None
    positions: Float | None = None
    embed_norm: Norm | None = None
    project_in: Linear | None = None
    project_out: Linear | None = None
    adapters: list[PackedAdapter] = field(default_factory=list)
    prefix: Float | None = None
    folds: tuple[StageFold, ...] = ()

    def token_vectors(self, ids_T: NDArray[np.integer]) -> Float:
        """The embeddings of tokens [T, embed]."""
        if isinstance(self.embed, PackedLinear):
            return rows(self.embed, ids_T)
        found = self.embed[ids_T]
        return widen(found) if found.dtype == np.uint16 else found.astype(np.float32)
