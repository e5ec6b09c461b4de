"""A reference executor in numpy and float64: slow, without compiled code, and independent of the others.

Shape suffixes as in ``base``; further N query heads, K key-value heads, G query heads per key-value head, H head_dim, D hidden,
S KV positions that a token attends to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.infer.executors.base import BLOCK, Batch
from llmctl.infer.packed import linear as packed_linear
from llmctl.infer.packed.linear import PackedLinear
from llmctl.infer.packed.model import Layer, Linear, Norm, PackedModel

Array = NDArray[Any]
LoraDeltas = Callable[[Array, str, int], Array]
"""What adapters add to a linear's outputs: from its inputs, its name in the layer, and its expert."""


class ReferenceExecutor:
    """Computes steps as ``base.Executor``.

    Args:
        model: The model.
        rounding: Whether inputs of int8 and int4 linears are rounded to 8 bits, as by the kernels.
    """

    def __init__(self, model: PackedModel, rounding: bool = False) -> None:
        self.model, self.graph, self._rounding = model, model.graph, rounding
        self._unpacked: dict[int, Array] = {}
        self._cache = np.zeros(0)

    @property
    def vocab(self) -> int:
        """V."""
        return self.graph.vocab

    @property
    def max_tokens(self) -> int | None:
        """Maximum number of tokens of a step; None = any number."""
        return None

    @property
    def block_bytes(self) -> int:
        """Bytes of a cache block over all layers."""
        return len(self.graph.layers) * 2 * BLOCK * self.graph.kv_heads * self.graph.head_dim * 8

    def allocate(self, blocks: int) -> None:
        """Allocates a cache of this many blocks; the contents of the previous one are lost."""
        graph = self.graph
        self._cache = np.full((len(graph.layers), 2, blocks, BLOCK, graph.kv_heads, graph.head_dim), np.nan)

    def copy(self, source: int, target: int) -> None:
        """Copies a block of the cache."""
        self._cache[:, :, target] = self._cache[:, :, source]

    def write_virtual_tokens(self, blocks: Array, prefix: Array) -> None:
        """Writes virtual tokens into the blocks."""
        position = np.arange(prefix.shape[2])
        self._cache[:, :, np.asarray(blocks)[position // BLOCK], position % BLOCK] = prefix

    def run(self, batch: Batch) -> Array:
        """Logits [L, V]."""
        model, graph = self.model, self.graph
        x_TD = model.token_vectors(batch.ids_T).astype(float)
        if model.embed_norm:
            x_TD = norm(graph, model.embed_norm, x_TD)
        if model.project_in:
            x_TD = self._linear(model.project_in, x_TD)
        if model.positions is not None:
            x_TD = x_TD + model.positions[batch.position_T]
        for index, layer in enumerate(model.layers):
            x_TD = self._part(layer.norm, x_TD, lambda x, i=index: self._attention(i, x, batch))
            x_TD = self._part(layer.ffn_norm, x_TD, lambda x, i=index: self._feed_forward(i, x, batch))
        x_LD = x_TD[batch.logits_indices_L]
        if model.final_norm:
            x_LD = norm(graph, model.final_norm, x_LD)
        if model.project_out:
            x_LD = self._linear(model.project_out, x_LD)
        return self._linear(model.head, x_LD)

    def _part(self, weights: Norm, x_TD: Array, part: Callable[[Array], Array]) -> Array:
        graph = self.graph
        if graph.norm_after:
            return norm(graph, weights, x_TD * graph.residual_scale + part(x_TD))
        normed = norm(graph, weights, x_TD)
        return (normed if graph.residual_after_norm else x_TD) * graph.residual_scale + part(normed)

    def _attention(self, index: int, x_TD: Array, batch: Batch) -> Array:
        graph, layer, deltas = self.graph, self.model.layers[index], self._lora_deltas(index, batch)
        packed = self._linear(layer.qkv, x_TD) + deltas(x_TD, "qkv", 0)
        heads = packed.reshape(len(x_TD), -1, graph.head_dim)
        q, k, v = np.split(heads, [graph.heads, graph.heads + graph.kv_heads], axis=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = (norm(graph, Norm(w), x) for w, x in ((layer.q_norm, q), (layer.k_norm, k)))
        q, k = apply_rope(graph, q, batch), apply_rope(graph, k, batch)
        if graph.rope and graph.rope.log_base:
            counted = np.maximum(batch.position_T + 1, graph.rope.log_base)
            q = q * (np.log(counted) / math.log(graph.rope.log_base))[:, None, None]
        block_T = batch.block_tables_RM[batch.sequence_T, batch.kv_position_T // BLOCK]
        self._cache[index, 0, block_T, batch.kv_position_T % BLOCK] = k
        self._cache[index, 1, block_T, batch.kv_position_T % BLOCK] = v
        mixed = np.stack([self._attend(index, q[t], t, batch) for t in range(len(q))])
        mixed = mixed.reshape(len(q), -1)
        return self._linear(layer.out, mixed) + deltas(mixed, "out", 0)

    def _attend(self, index: int, q_NH: Array, token: int, batch: Batch) -> Array:
        """Attention of one token [N, H]."""
        graph = self.graph
        position_S = np.arange(batch.attend_begin_T[token], batch.attend_end_T[token])
        block_S = batch.block_tables_RM[batch.sequence_T[token], position_S // BLOCK]
        k_SKH, v_SKH = self._cache[index][:, block_S, position_S % BLOCK]
        q_KGH = q_NH.reshape(graph.kv_heads, -1, graph.head_dim)
        scores_KGS = np.einsum("kgh,skh->kgs", q_KGH, k_SKH) * graph.score_scales[index]
        if graph.slopes:
            scores_KGS = scores_KGS + np.reshape(graph.slopes, (graph.kv_heads, -1, 1)) * position_S
        return np.einsum("kgs,skh->kgh", softmax(scores_KGS), v_SKH).reshape(q_NH.shape)

    def _feed_forward(self, index: int, x_TD: Array, batch: Batch) -> Array:
        layer, deltas = self.model.layers[index], self._lora_deltas(index, batch)
        if layer.router is None:
            return self._expert(layer, 0, x_TD, deltas)
        routing = self.graph.experts
        assert routing is not None
        weight_TE = softmax(x_TD @ layer.router.T)
        least_T1 = np.sort(weight_TE, axis=-1)[:, -routing.top_k, None]
        weight_TE = np.where(weight_TE >= least_T1, weight_TE, 0)
        if routing.renormalize:
            weight_TE = weight_TE / weight_TE.sum(axis=-1, keepdims=True)
        outputs = (weight_TE[:, e, None] * self._expert(layer, e, x_TD, deltas) for e in range(routing.count))
        return np.sum(np.stack(list(outputs)), axis=0)

    def _expert(self, layer: Layer, expert: int, x_TD: Array, deltas: LoraDeltas) -> Array:
        up = self._linear(layer.up[expert], x_TD) + deltas(x_TD, "up", expert)
        inner = ACTIVATIONS[self.graph.activation](up)
        return self._linear(layer.down[expert], inner) + deltas(inner, "down", expert)

    def _lora_deltas(self, index: int, batch: Batch) -> LoraDeltas:
        def delta(x: Array, name: str, expert: int) -> Array:
            total: Any = 0.0
            adapter_T = np.asarray(batch.adapter_R)[batch.sequence_T][:, None]
            for number, adapter in enumerate(self.model.adapters):
                if found := adapter.deltas.get((index, name, expert)):
                    total = total + np.where(adapter_T == number, x @ found.a.astype(float) @ found.b.astype(float), 0)
            return np.asarray(total)

        return delta

    def _linear(self, linear: Linear, x: Array) -> Array:
        y = np.concatenate([self._product(weight, x) for weight in packed_linear.parts_of(linear.weight)], axis=-1)
        return y if linear.bias is None else y + linear.bias

    def _product(self, weight: PackedLinear, x: Array) -> Array:
        rounding = self._rounding and weight.kind in packed_linear.LIMITS
        if id(weight) not in self._unpacked:
            values = packed_linear.unpack_codes(weight) if rounding else packed_linear.unpack(weight)
            self._unpacked[id(weight)] = values.astype(float)
        if rounding:
            x = packed_linear.seen(x.astype(np.float32), weight).astype(float)
        return x @ self._unpacked[id(weight)]


def norm(graph: DecoderSpec, weights: Norm, x: Array) -> Array:
    """x normalized over the last axis."""
    if graph.norm == "layernorm":
        x = x - x.mean(axis=-1, keepdims=True)
    y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + graph.norm_eps) * weights.weight
    return y if weights.bias is None else y + weights.bias


def apply_rope(graph: DecoderSpec, x_TNH: Array, batch: Batch) -> Array:
    """RoPE on elements i and i + rotary_dim/2 of every head."""
    rope = graph.rope
    if rope is None:
        return x_TNH
    angle = batch.position_T[:, None] * np.asarray(rope.frequencies)
    if rope.pairs == "2d":
        assert batch.second_position_T is not None
        angle = np.concatenate([angle, batch.second_position_T[:, None] * np.asarray(rope.frequencies)], axis=1)
    cos, sin = (f(angle)[:, None] * rope.attention_factor for f in (np.cos, np.sin))
    low, high, rest = np.split(x_TNH, [rope.rotary_dim // 2, rope.rotary_dim], axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin, rest], axis=-1)


def softmax(scores: Array) -> Array:
    """Softmax over the last axis."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _swiglu(up: Array) -> Array:
    gate, up = np.split(up, 2, axis=-1)
    return gate / (1 + np.exp(-gate)) * up


def _gelu(up: Array) -> Array:
    return up / 2 * (1 + np.vectorize(math.erf)(up / math.sqrt(2)))


def _gelu_tanh(up: Array) -> Array:
    return up / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "swiglu": _swiglu,
    "gelu": _gelu,
    "gelu-tanh": _gelu_tanh,
    "relu": lambda up: np.maximum(up, 0),
}
