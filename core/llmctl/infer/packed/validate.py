"""Whether a packed model is one that executors can compute: types of all values, possible sizes, arrays that fit them.

A packed folder may be damaged, or come from anywhere; its hash of itself is no signature.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from llmctl.card.decoder_spec import DecoderSpec, Rope
from llmctl.card.slots import ACTIVATIONS, NORMS, OTHER
from llmctl.infer.packed import linear as packed
from llmctl.infer.packed.model import Layer, Linear, LoraDelta, Norm, PackedModel, StageFold
from llmctl.io.typed import check_type

LARGEST = 1 << 31
"""Sizes are below; kernels count tokens and positions in 32 bits."""

PAIRS = {"neox": 2, "interleaved": 2, "2d": 4}
SLOTS = frozenset({"qkv", "out", "ffn1", "ffn2"})
LAYOUTS = ("parts", "heads")


def validate(model: PackedModel) -> None:
    """Checks a model that was read from a file.

    Raises:
        ValueError: Says what is wrong.
    """
    check_type(model, PackedModel)
    spec = model.graph
    _check_spec(spec)
    _require(len(spec.layers) == len(model.layers) > 0, f"{len(model.layers)} layers, {len(spec.layers)} in the graph")
    _check_outer(model)
    for index, layer in enumerate(model.layers):
        _check_layer(f"layers[{index}]", layer, spec)
    for adapter in model.adapters:
        for key, delta in adapter.deltas.items():
            _check_delta(f"adapter {adapter.name} {key}", delta, _adapted(model, *key))
    for fold in model.folds:
        _check_fold(model, fold)
    if model.prefix is not None:
        keys = (spec.kv_heads, spec.head_dim)
        _require(model.prefix.ndim == 5 and 0 < model.prefix.shape[2] < LARGEST, "prefix has no virtual tokens")
        _array("prefix", model.prefix, (len(model.layers), 2, model.prefix.shape[2], *keys))


def _check_spec(spec: DecoderSpec) -> None:
    for name in ("hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "embed"):
        _size(name, getattr(spec, name))
    for name in ("window", "max_positions"):
        if getattr(spec, name) is not None:
            _size(name, getattr(spec, name))
    _require(0 <= spec.position_offset < LARGEST, f"position_offset={spec.position_offset}")
    _require(spec.heads % spec.kv_heads == 0, f"heads={spec.heads} is no multiple of kv_heads={spec.kv_heads}")
    _require(spec.norm in NORMS and spec.norm != OTHER, f"norm={spec.norm!r} is unknown")
    _require(spec.activation in ACTIVATIONS and spec.activation != OTHER, f"activation={spec.activation!r} is unknown")
    _require(spec.qkv in LAYOUTS, f"qkv={spec.qkv!r} is unknown")
    _finite("norm_eps", [spec.norm_eps])
    _finite("residual_scale", [spec.residual_scale])
    _finite("slopes", spec.slopes, (0, spec.heads))
    _finite("score_scales", spec.score_scales, (0, len(spec.layers)))
    for index, slots in enumerate(spec.layers):
        _require(slots.keys() >= SLOTS, f"layer {index} of the graph has only the slots {', '.join(slots)}")
    if spec.rope is not None:
        _check_rope(spec.rope, spec.head_dim)
    if spec.experts is not None:
        _size("experts.count", spec.experts.count)
        _require(0 < spec.experts.top_k <= spec.experts.count, f"experts.top_k={spec.experts.top_k}")
    if spec.prefix_lm is not None:
        ids = (spec.prefix_lm.end, *spec.prefix_lm.mask_ids)
        _require(len(ids) > 1 and all(0 <= token < spec.vocab for token in ids), f"tokens {ids} of the prefix")


def _check_rope(rope: Rope, head_dim: int) -> None:
    _require(rope.pairs in PAIRS, f"rope.pairs={rope.pairs!r} is unknown")
    whole = 0 < rope.rotary_dim <= head_dim and rope.rotary_dim % PAIRS[rope.pairs] == 0
    _require(whole, f"rope.rotary_dim={rope.rotary_dim} of heads of {head_dim}")
    _finite("rope.frequencies", rope.frequencies, (rope.rotary_dim // PAIRS[rope.pairs],))
    _finite("rope.attention_factor", [rope.attention_factor])
    _require(rope.log_base is None or 1 < rope.log_base < LARGEST, f"rope.log_base={rope.log_base}")
    if rope.max_stable_length is not None:
        _size("rope.max_stable_length", rope.max_stable_length)


def _check_outer(model: PackedModel) -> None:
    spec = model.graph
    if isinstance(model.embed, packed.PackedLinear):
        _linear("embed", Linear(model.embed), spec.embed, spec.vocab)
        _require(model.embed.order is None and model.embed.factors is None, "embed has an order or factors")
    else:
        _require(model.embed.dtype in (np.float32, np.float16, np.uint16), f"embed is {model.embed.dtype}")
        _shape("embed", model.embed, (spec.vocab, spec.embed))
    if model.positions is not None:
        rows = len(model.positions) if model.positions.ndim else 0
        _array("positions", model.positions, (rows, spec.hidden))
        _require(0 < (spec.max_positions or 0) <= rows, f"max_positions={spec.max_positions} of {rows} position rows")
    _norm("embed_norm", model.embed_norm, spec.embed)
    _norm("final_norm", model.final_norm, spec.hidden)
    _require(
        model.project_in is not None or spec.embed == spec.hidden, "embeddings are projected, and project_in is absent"
    )
    if model.project_in is not None:
        _linear("project_in", model.project_in, spec.embed, spec.hidden)
    if model.project_out is not None:
        _linear("project_out", model.project_out, spec.hidden, spec.embed)
    _linear("head", model.head, spec.hidden if model.project_out is None else spec.embed, spec.vocab)


def _check_layer(where: str, layer: Layer, spec: DecoderSpec) -> None:
    width = spec.heads * spec.head_dim
    experts = spec.experts.count if spec.experts else 1
    _norm(f"{where}.norm", layer.norm, spec.hidden)
    _norm(f"{where}.ffn_norm", layer.ffn_norm, spec.hidden)
    _linear(f"{where}.qkv", layer.qkv, spec.hidden, width + 2 * spec.kv_heads * spec.head_dim)
    _linear(f"{where}.out", layer.out, width, spec.hidden)
    _require(len(layer.up) == len(layer.down) == experts, f"{where} has {len(layer.up)} of {experts} experts")
    for index, (up, down) in enumerate(zip(layer.up, layer.down, strict=True)):
        _linear(f"{where}.up[{index}]", up, spec.hidden, spec.ffn * (2 if spec.activation == "swiglu" else 1))
        _linear(f"{where}.down[{index}]", down, spec.ffn, spec.hidden)
    _require((layer.router is None) == (spec.experts is None), f"{where}.router and experts do not go together")
    if layer.router is not None:
        _array(f"{where}.router", layer.router, (experts, spec.hidden))
    for name in ("q_norm", "k_norm"):
        if getattr(layer, name) is not None:
            _array(f"{where}.{name}", getattr(layer, name), (spec.head_dim,))


def _norm(where: str, norm: Norm | None, width: int) -> None:
    if norm is not None:
        _array(f"{where}.weight", norm.weight, (width,))
        if norm.bias is not None:
            _array(f"{where}.bias", norm.bias, (width,))


def _linear(where: str, layer: Linear, inputs: int, outputs: int) -> None:
    parts = packed.parts_of(layer.weight)
    _require(len(parts) > 0, f"{where} has no parts")
    for part in parts:
        _weight(where, part, inputs)
    found = layer.weight.outputs
    _require(found == outputs, f"{where} is [{inputs}, {found}], not [{inputs}, {outputs}]")
    if layer.bias is not None:
        _array(f"{where}.bias", layer.bias, (outputs,))


def _weight(where: str, weight: packed.PackedLinear, inputs: int) -> None:
    _require(weight.inputs == inputs, f"{where} has {weight.inputs} inputs, not {inputs}")
    _require(0 <= weight.group < LARGEST, f"{where} has groups of {weight.group}")
    for name, size, dtype in packed.array_sizes(weight):
        array = getattr(weight, name)
        if size is None:
            _require(array is None, f"{where}.{name} of {weight.kind}")
        elif array is not None or name in ("data", "scales"):
            _require(array is not None and array.dtype == dtype, f"{where}.{name} is not {np.dtype(dtype)}")
            _shape(f"{where}.{name}", array, (size,))
    if weight.order is not None:
        _require(np.array_equal(np.sort(weight.order), np.arange(inputs)), f"{where}.order is not one of its inputs")


def _adapted(model: PackedModel, index: int, part: str, expert: int) -> Linear:
    """The linear that a delta changes."""
    _require(0 <= index < len(model.layers), f"a fold or an adapter changes layer {index}")
    _require(part in ("qkv", "out", "up", "down"), f"a fold or an adapter changes {part!r}")
    linears = getattr(model.layers[index], part)
    linears = linears if isinstance(linears, tuple) else (linears,)
    _require(0 <= expert < len(linears), f"a fold or an adapter changes expert {expert}")
    return linears[expert]  # type: ignore[no-any-return]


def _check_fold(model: PackedModel, fold: StageFold) -> None:
    where = f"fold of {fold.stage} of layer {fold.layer}"
    inputs = _adapted(model, fold.layer, fold.stage, fold.expert).weight.inputs
    _array(where, fold.scale, (inputs,))
    _require(bool((np.isfinite(fold.scale) & (fold.scale > 0)).all()), f"{where} has scales that are not above 0")
    if fold.offset is not None:
        _array(where, fold.offset, (inputs,))


def _check_delta(where: str, delta: LoraDelta, linear: Linear) -> None:
    rank = delta.a.shape[1] if delta.a.ndim == 2 else 0
    _require(rank > 0, f"{where} has no rank")
    _array(f"{where}.a", delta.a, (linear.weight.inputs, rank))
    _array(f"{where}.b", delta.b, (rank, linear.weight.outputs))


def _array(where: str, array: Any, shape: Sequence[int]) -> None:
    _require(array.dtype == np.float32, f"{where} is {array.dtype}, not float32")
    _shape(where, array, shape)


def _shape(where: str, array: Any, shape: Sequence[int]) -> None:
    _require(array.shape == tuple(shape), f"{where} is {list(array.shape)}, not {list(shape)}")


def _size(name: str, value: int) -> None:
    _require(0 < value < LARGEST, f"{name}={value}, not 1 to {LARGEST - 1}")


def _finite(name: str, values: Iterable[float], lengths: Sequence[int] = (1,)) -> None:
    listed = list(values)
    _require(len(listed) in lengths, f"{len(listed)} {name}, not {lengths[-1]}")
    _require(all(math.isfinite(value) for value in listed), f"{name} are not finite")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
