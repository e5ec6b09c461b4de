"""A model as executors take it: every linear packed (``packed_linear``), everything else float32 arrays.

Made by ``packing.py``; where it comes from a packed folder the arrays are views of the mapped file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.infer.packed.linear import PackedLinear

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Norm:
    """Weight and, of a LayerNorm, bias [hidden]."""

    weight: Float
    bias: Float | None = None


@dataclass(frozen=True)
class Linear:
    """A packed weight [in, out] and its bias [out]."""

    weight: PackedLinear
    bias: Float | None = None


@dataclass(frozen=True)
class Layer:
    """One layer of the standard decoder.

    The outputs of ``qkv`` are all queries, then all keys, then all values, each head by head; within a head they lie so
    that pairs which are turned together are element i and i + width/2 of the first ``rope.rotary_dim``. The score scale is
    not in them. Of a gated layer ``up`` gives gate and then up.

    Attributes:
        up: One, or one for each expert.
        down: As ``up``.
        router: [experts, hidden]; None = one feed-forward layer.
        q_norm: Weight of the norm of each head's queries [head_dim], in the order of the queries' elements; k_norm alike.
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


@dataclass(frozen=True)
class Adapted:
    """A low-rank change of one packed linear: y += (x a) b, its scale in ``b``; parts of a packed linear side by side in ``a``.

    Attributes:
        a: [in, rank].
        b: [rank, out], in the order of the packed linear's outputs.
    """

    a: Float
    b: Float


@dataclass(frozen=True)
class PackedAdapter:
    """An adapter for a packed model: (layer, ``qkv`` | ``out`` | ``up`` | ``down``, expert or 0) -> its change."""

    name: str
    changes: dict[tuple[int, str, int], Adapted]


@dataclass(frozen=True)
class PackedModel:
    """The whole model.

    Attributes:
        graph: What is computed.
        embed: Token vectors [vocab, embed]; float32, or bfloat16 as uint16.
        positions: Table of positions, row 0 = place 0 [max_positions, hidden]; None = none.
        embed_norm: Norm of token vectors as they are looked up, before anything is added [embed].
        project_in: [embed, hidden].
        project_out: [hidden, embed].
        final_norm: None = none.
        head: [hidden or embed, vocab].
        layers: In order.
        adapters: That sequences may name by index.
        prefix: Keys and values of virtual tokens [layers, 2, P, kv_heads, head_dim], keys in the order of the packed keys
            and turned already; None = none.
    """

    graph: DecoderSpec
    embed: NDArray[np.generic]
    head: Linear
    layers: tuple[Layer, ...]
    final_norm: Norm | None
    positions: Float | None = None
    embed_norm: Norm | None = None
    project_in: Linear | None = None
    project_out: Linear | None = None
    adapters: list[PackedAdapter] = field(default_factory=list)
    prefix: Float | None = None
