"""Adapters and virtual tokens in the order of a packed model's elements. Paths of layers are those of the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmctl.adapters import targets
from llmctl.adapters.adapter import Adapter, LoraWeights, fuse
from llmctl.adapters.folder import OpenedAdapter
from llmctl.adapters.merge import MergedWeight
from llmctl.adapters.prefix import Prefix
from llmctl.card.decoder_spec import DecoderSpec
from llmctl.errors import CheckpointError, UnsupportedError
from llmctl.infer.packed.model import Float, LoraDelta, PackedAdapter, PackedModel
from llmctl.infer.packed.pack import Order, chunks, element_order, qkv_order

PACKED_NAMES = {"qkv": "qkv", "out": "out", "ffn1": "up", "ffn2": "down"}
"""Slot -> name of the packed linear that holds its tensors."""


def pack_adapter(adapter: Adapter, graph: DecoderSpec, widths: Mapping[str, int], name: str) -> PackedAdapter:
    """A LoRA adapter that is applied at run time, unmerged.

    Args:
        adapter: The adapter.
        graph: Its base.
        widths: Name of every linear in the layers -> its outputs.
        name: What the adapter is called.

    Raises:
        UnsupportedError: It is a DoRA adapter, whose magnitudes depend on the whole weight.
        CheckpointError: It has a layer that the base does not have.
    """
    if dora := [path for path, layer in adapter.layers.items() if layer.magnitude is not None]:
        raise UnsupportedError(
            f"the adapter {name} is a DoRA adapter ({dora[0]} and others), which packed weights do not support at run time; "
            "merge it with llmctl merge, or when packing: llmctl export --engine fused --adapter FOLDER"
        )
    order, deltas, left = qkv_order(graph), {}, set(adapter.layers)
    for index, slots in enumerate(graph.layers):
        for slot, packed_name in PACKED_NAMES.items():
            experts = graph.experts.count if graph.experts and "gate" in slots and packed_name in ("up", "down") else 1
            for expert, names in enumerate(chunks(slots[slot], experts)):
                paths = [targets.module_of(weight) for weight in names]
                layers = [adapter.layers.get(path) for path in paths]
                if any(layers):
                    delta = _fused(layers, [widths[weight] for weight in names])
                    deltas[index, packed_name, expert] = _ordered(delta, order) if packed_name == "qkv" else delta
                left -= set(paths)
    if left:
        raise CheckpointError(f"the adapter {name} changes {sorted(left)[0]}, which is no linear of the fused decoder")
    return PackedAdapter(name, deltas)


def widths_of(plugin: Any, dims: Any) -> dict[str, int]:
    """Name of every linear in the layers of a model -> its outputs."""
    rows = targets.linears(plugin.card, dims).values()
    return {tensor.name: tensor.shape[-1] for tensor in rows}


def pack_prefix(prefix: Prefix, graph: DecoderSpec) -> Float:
    """Keys and values of virtual tokens [layers, 2, P, K, H], keys in the order of the packed elements.

    A prefix in memory holds keys as the family's model caches them: with RoPE applied, and for interleaved pairs in the packed
    order already.
    """
    values = np.array(prefix.values, np.float32)
    if graph.rope is not None and graph.rope.pairs == "2d":
        values[:, 0] = values[:, 0][..., element_order(graph)]
    return values


def fold_adapter(adapter: PackedAdapter, model: PackedModel) -> PackedAdapter:
    """An adapter of the float model for one whose layers have scales folded into them.

    Args:
        adapter: The adapter, packed for the float model.
        model: The model.

    Raises:
        UnsupportedError: Offsets were folded into what the adapter reads, which makes a constant that no low-rank matrix holds.
    """
    folds = {(fold.layer, fold.stage, fold.expert): fold for fold in model.folds}
    graph, deltas = model.graph, dict[tuple[int, str, int], LoraDelta]()
    values = slice((graph.heads + graph.kv_heads) * graph.head_dim, None)
    wide = slice(graph.ffn if graph.activation == "swiglu" else 0, None)
    for (layer, name, expert), delta in adapter.deltas.items():
        a, b = delta.a, delta.b
        read = folds.get((layer, name, expert if name == "down" else 0))
        if read is not None:
            if read.offset is not None:
                raise UnsupportedError(
                    f"the adapter {adapter.name} changes {name} of layer {layer}, whose inputs were shifted when the model was "
                    "quantized; quantize it with --set quantize.shift=false, or merge the adapter before"
                )
            a = a * read.scale[:, None]
        if name == "qkv" and (layer, "out", 0) in folds:
            b = _divided(b, values, _of_values(folds[layer, "out", 0].scale, graph))
        if name == "up" and (layer, "down", expert) in folds:
            b = _divided(b, wide, folds[layer, "down", expert].scale)
        deltas[layer, name, expert] = LoraDelta(a, b)
    return PackedAdapter(adapter.name, deltas)


def fold_prefix(prefix: Float, model: PackedModel) -> Float:
    """Virtual tokens of the float model for one whose layers have scales and offsets folded into them.

    Args:
        prefix: Keys and values, packed for the float model.
        model: The model.
    """
    graph, changed = model.graph, prefix.copy()
    for fold in model.folds:
        if fold.stage == "out":
            offset = 0 if fold.offset is None else _of_values(fold.offset, graph).reshape(graph.kv_heads, -1)
            scale = _of_values(fold.scale, graph).reshape(graph.kv_heads, -1)
            changed[fold.layer, 1] = (changed[fold.layer, 1] - offset) / scale
    return changed


def _of_values(inputs: Float, graph: DecoderSpec) -> Float:
    """What query heads share, of each value [K * H]."""
    by_head = inputs.reshape(graph.kv_heads, graph.heads // graph.kv_heads, graph.head_dim)
    return np.asarray(by_head[:, 0].reshape(-1))


def _divided(b: Float, part: slice, scale: Float) -> Float:
    changed = b.copy()
    changed[:, part] /= scale
    return changed


def merged_state(state: Mapping[str, Any], opened: OpenedAdapter, adapter: bool = True) -> dict[str, Any]:
    """The tensors of an adapter's base with the adapter merged, and quantized as in training.

    Args:
        state: Tensors of the base, as ``checkpoint.convert.open_source`` gives it.
        opened: A LoRA adapter and its base.
        adapter: Whether the adapter is merged; otherwise the base is only quantized.
    """
    assert isinstance(opened.adapter, Adapter)
    layers = opened.adapter.layers if adapter else {}
    merged = dict(state)
    for path in targets.linears(opened.plugin.card, opened.dims):
        weight, lora = path + ".weight", layers.get(path)
        if lora is not None or opened.quantized:
            merged[weight] = MergedWeight(state[weight], lora, "float32", opened.quantized)
    return merged


def _fused(layers: Sequence[LoraWeights | None], widths: Sequence[int]) -> LoraDelta:
    """A and B of a packed linear, which fuses several layers; the scales are multiplied into B."""
    fused = fuse([layer.folded() if layer else None for layer in layers], widths)
    return LoraDelta(np.ascontiguousarray(fused.a, np.float32), np.ascontiguousarray(fused.b, np.float32))


def _ordered(delta: LoraDelta, order: Order) -> LoraDelta:
    return LoraDelta(delta.a, np.ascontiguousarray(delta.b[:, order]))
