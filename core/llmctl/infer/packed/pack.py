"""From a model's tensors to a ``PackedModel``: streamed tensor by tensor, in the order of elements that executors use.

Nothing here imports paddle, and the model is never in memory as floats as a whole. Weights come from a ``Weights``: the
tensors of a checkpoint, quantized by rounding to nearest (``RoundToNearest``), or another source of codes. Shape suffixes: I inputs,
O outputs of a linear.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.card.dims import Dims
from llmctl.card.support import require
from llmctl.checkpoint.convert import open_source
from llmctl.checkpoint.formats.dtypes import FLOATS, cast
from llmctl.errors import CheckpointError, ConfigError
from llmctl.infer.packed import linear as packed_linear
from llmctl.infer.packed.linear import KINDS, PackedLinear, Weight
from llmctl.infer.packed.model import Float, Layer, Linear, Norm, PackedModel
from llmctl.io.progress import tracked

GROUPS = {"int8": 128, "int4": 64}
"""Inputs that share a scale by default."""

OUTER_KINDS = {"int4": "int8"}
"""Kind of the head, of embeddings and of their projections, if it differs from that of the layers."""

HALF = ("bfloat16", "float16")

WORKERS = 4
"""Maximum number of layers that are packed at a time: each takes the memory of its floats."""

PROJECTIONS = ("project_in", "project_out", "head")

Order = NDArray[np.int64]
Names = tuple[str, ...]


class Weights(Protocol):
    """A model's tensors by their names on the card, in paddle's layout."""

    def array(self, name: str) -> Float:
        """A tensor's values."""

    def table(self, name: str) -> NDArray[np.generic] | PackedLinear:
        """Embeddings of tokens that are no head, as ``PackedModel`` has them."""

    def linear(self, names: Sequence[str], order: Order | None) -> Weight:
        """Weights of a layer, concatenated along their outputs and packed with the outputs in this order; None = as they are."""

    def outer(self, name: str, transposed: bool) -> PackedLinear:
        """A weight outside the layers; of a tied head the token embeddings, transposed."""


class RoundToNearest:
    """Tensors of a checkpoint, packed by rounding to nearest.

    Args:
        state: Name -> anything with ``dtype`` and ``numpy()``, as ``checkpoint.convert.LazyTensor``.
        kind: One of ``linear.KINDS``.
        group: Inputs that share a scale; None = as in ``GROUPS``; 0 = one scale per output.

    Raises:
        ConfigError: There is no such kind or group.
    """

    def __init__(self, state: Mapping[str, Any], kind: str = "float32", group: int | None = None) -> None:
        if kind not in KINDS:
            raise ConfigError(f"weights={kind!r} is unknown; known: {', '.join(KINDS)}")
        if group and kind not in GROUPS:
            raise ConfigError(f"group={group} is for weights of {' and '.join(GROUPS)}; these are {kind}")
        if group and (group % 32 or group < 0):
            raise ConfigError(f"group={group} must be 0 (a scale for each output) or a multiple of 32")
        self._state, self._kind, self._group = state, kind, group

    def array(self, name: str) -> Float:
        """A tensor's values as float32."""
        stored = self._state[name]
        try:
            return np.ascontiguousarray(cast(stored.numpy(), stored.dtype, "float32"))
        except ValueError as error:
            raise CheckpointError(f"{name} cannot be computed with: {error}") from None

    def table(self, name: str) -> NDArray[np.generic] | PackedLinear:
        """Nearest int8 codes for weights of codes; else 16 bits if it is stored so, or float32."""
        if self._kind in GROUPS:
            return self.outer(name, True)
        stored = self._state[name]
        return np.asarray(stored.numpy()) if stored.dtype in HALF else self.array(name)

    def linear(self, names: Sequence[str], order: Order | None) -> Weight:
        """The nearest codes."""
        weights = [self.array(name) for name in names]
        weight_IO = weights[0] if len(weights) == 1 else np.concatenate(weights, axis=1)
        return self._packed(weight_IO if order is None else weight_IO[:, order], self._kind_of(names), names)

    def outer(self, name: str, transposed: bool) -> PackedLinear:
        """The nearest codes; int8 if the layers are int4."""
        weight, kind = self.array(name), self._kind_of([name])
        return self._packed(weight.T if transposed else weight, OUTER_KINDS.get(kind, kind), [name])

    def _kind_of(self, names: Sequence[str]) -> str:
        """Kind of the packed weight of these tensors."""
        return self._kind

    def _packed(self, weight_IO: Float, kind: str, names: Sequence[str]) -> PackedLinear:
        group = GROUPS.get(kind, 0) if self._group is None or kind != self._kind else self._group
        try:
            return packed_linear.pack(weight_IO, kind, group)
        except ValueError as error:
            raise CheckpointError(f"{' and '.join(names)} cannot be packed: {error}") from None


@dataclass(frozen=True)
class UnitColumns:
    """A stored weight [I, O] with its columns normalized to length 1, with the attributes that ``RoundToNearest`` reads."""

    stored: Any
    dtype: str = "float32"

    def numpy(self) -> Float:
        """The values."""
        weight = cast(self.stored.numpy(), self.stored.dtype, "float32")
        return np.asarray(weight / np.maximum(np.linalg.norm(weight, axis=0), 1e-12), np.float32)


def pack_model(
    folder: Path, plugin: Any, dims: Dims, weights: str = "float32", group: int | None = None
) -> PackedModel:
    """The model of a checkpoint folder in any layout and type, its weights rounded to nearest.

    Args:
        folder: The checkpoint.
        plugin: Its family.
        dims: Its dims.
        weights: Kind of the layers' weights, one of ``linear.KINDS``.
        group: Inputs that share a scale; None = as in ``GROUPS``; 0 = one scale per output.

    Raises:
        UnsupportedError: The family has no fused path.
        CheckpointError: The tensors are not those of the card, or cannot be computed with.
        ConfigError: There is no such kind or group.
    """
    graph = graph_of(plugin, dims)
    return pack(graph, RoundToNearest(state_of(open_source(folder, plugin, dims).state, graph), weights, group))


def graph_of(plugin: Any, dims: Dims) -> DecoderSpec:
    """What the fused engine computes for a model.

    Raises:
        UnsupportedError: The fused engine does not support the model; the message says why.
    """
    require(plugin.card, "fused")
    return plugin.hooks.fused_graph(card=plugin.card, dims=dims)  # type: ignore[no-any-return]


def state_of(state: Mapping[str, Any], graph: DecoderSpec) -> dict[str, Any]:
    """The tensors of a checkpoint as the graph computes with them.

    Raises:
        CheckpointError: A tensor is not of a floating type.
    """
    if odd := sorted(name for name, stored in state.items() if stored.dtype not in FLOATS):
        raise CheckpointError(f"{', '.join(odd[:5])}: {state[odd[0]].dtype} cannot be computed with")
    head = graph.outer.get("head")
    return {**state, **({head: UnitColumns(state[head])} if graph.unit_head and head else {})}


def pack(graph: DecoderSpec, weights: Weights) -> PackedModel:
    """The model as executors take it.

    Args:
        graph: What is computed.
        weights: Its tensors.
    """
    outer = graph.outer
    linears = {slot: Linear(weights.outer(outer[slot], False)) for slot in PROJECTIONS if slot in outer}
    head = linears.pop("head", None)
    if head is None:
        head = Linear(weights.outer(outer["embed"], True))
        embed: NDArray[np.generic] | PackedLinear = head.weight
    else:
        embed = weights.table(outer["embed"])
    positions = weights.array(outer["positions"])[graph.position_offset :] if "positions" in outer else None
    return PackedModel(
        graph=graph,
        embed=embed,
        head=head,
        layers=_layers(graph, weights),
        final_norm=_norm(outer, "final_ln", weights),
        positions=positions,
        embed_norm=_norm(outer, "embed_ln", weights),
        **linears,
    )


def pack_layer(graph: DecoderSpec, index: int, weights: Weights) -> Layer:
    """One layer as executors take it.

    Args:
        graph: What is computed.
        index: Number of the layer.
        weights: The model's tensors.
    """
    return _layer(graph, graph.layers[index], weights, _kept_order(graph))


def element_order(graph: DecoderSpec) -> Order:
    """For each element of a packed head the index of the original element [head_dim].

    RoPE pairs of a packed head are elements i and i + rotary_dim/2.
    """
    order = np.arange(graph.head_dim)
    if graph.rope is None:
        return order
    rotary = order[: graph.rope.rotary_dim]
    if graph.rope.pairs == "interleaved":
        rotary = rotary.reshape(-1, 2).T
    elif graph.rope.pairs == "2d":
        rotary = rotary.reshape(2, 2, -1).swapaxes(0, 1)
    return np.concatenate([rotary.reshape(-1), order[graph.rope.rotary_dim :]])


def qkv_order(graph: DecoderSpec) -> Order:
    """For each output of a packed projection of queries, keys and values the index of the original output."""
    heads, kv_heads = graph.heads, graph.kv_heads
    rows = np.arange((heads + 2 * kv_heads) * graph.head_dim).reshape(-1, graph.head_dim)
    if graph.qkv == "heads":
        rows = rows.reshape(heads, 3, -1).swapaxes(0, 1).reshape(rows.shape)
    rotary = heads + kv_heads
    return np.concatenate([rows[:rotary, element_order(graph)], rows[rotary:]]).reshape(-1)


def _layers(graph: DecoderSpec, weights: Weights) -> tuple[Layer, ...]:
    """All layers, several at a time."""
    kept = _kept_order(graph)
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        layers = pool.map(lambda slots: _layer(graph, slots, weights, kept), graph.layers)
        return tuple(tracked(layers, "packing the weights", len(graph.layers)))


def _kept_order(graph: DecoderSpec) -> Order | None:
    """The order of queries, keys and values; None = as they are."""
    order = qkv_order(graph)
    return None if np.array_equal(order, np.arange(len(order))) else order


def _layer(graph: DecoderSpec, slots: Mapping[str, Names], weights: Weights, order: Order | None) -> Layer:
    experts = graph.experts.count if graph.experts and "gate" in slots else 1
    up, up_bias = (chunks(slots.get(slot, ()), experts) for slot in ("ffn1", "ffn1_bias"))
    down, down_bias = (chunks(slots.get(slot, ()), experts) for slot in ("ffn2", "ffn2_bias"))
    within = element_order(graph)
    heads = {slot: weights.array(slots[slot][0])[within] for slot in ("q_norm", "k_norm") if slot in slots}
    norms = {slot: names[0] for slot, names in slots.items()}
    return Layer(
        norm=_needed_norm(norms, "ln", weights),
        qkv=_linear(slots["qkv"], slots.get("qkv_bias", ()), weights, order),
        out=_linear(slots["out"], slots.get("out_bias", ()), weights),
        ffn_norm=_needed_norm(norms, "ffn_ln", weights),
        up=tuple(_linear(*names, weights) for names in zip(up, up_bias, strict=True)),
        down=tuple(_linear(*names, weights) for names in zip(down, down_bias, strict=True)),
        router=np.ascontiguousarray(weights.array(slots["gate"][0]).T) if "gate" in slots else None,
        **heads,
    )


def chunks(names: Names, experts: int) -> list[Names]:
    """The names of each expert, of tensors in the order of experts."""
    each = len(names) // experts
    return [names[i * each : (i + 1) * each] for i in range(experts)]


def _linear(names: Names, biases: Names, weights: Weights, order: Order | None = None) -> Linear:
    bias = np.concatenate([weights.array(name) for name in biases]) if biases else None
    return Linear(weights.linear(names, order), bias if bias is None or order is None else bias[order])


def _norm(names: Mapping[str, str], slot: str, weights: Weights) -> Norm | None:
    if slot not in names:
        return None
    bias = names.get(slot + "_bias")
    return Norm(weights.array(names[slot]), None if bias is None else weights.array(bias))


def _needed_norm(names: Mapping[str, str], slot: str, weights: Weights) -> Norm:
    norm = _norm(names, slot, weights)
    assert norm is not None
    return norm
