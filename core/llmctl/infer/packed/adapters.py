"""Adapters and virtual tokens in the order of a packed model. Paths of layers are those of the card."""

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
from llmctl.infer.packed.model import Adapted, Float, PackedAdapter
from llmctl.infer.packed.pack import Order, chunks, element_order, qkv_order

PLACES = {"qkv": "qkv", "out": "out", "ffn1": "up", "ffn2": "down"}
"""Slot -> name of the packed linear that its tensors make up."""


def pack_adapter(adapter: Adapter, graph: DecoderSpec, widths: Mapping[str, int], name: str) -> PackedAdapter:
    """A low-rank adapter beside the packed weights, which it leaves as they are.

    Args:
        adapter: The adapter.
        graph: Of its base.
        widths: Name of every linear in the layers -> its outputs.
        name: What the adapter is called.

    Raises:
        UnsupportedError: It is a DoRA adapter, whose magnitudes depend on the whole weight.
        CheckpointError: It changes a layer that the graph does not have.
    """
    if dora := [path for path, layer in adapter.layers.items() if layer.magnitude is not None]:
        raise UnsupportedError(
            f"the adapter {name} is a DoRA adapter ({dora[0]} and others), which packed weights do not support at run time; "
            "merge it with llmctl merge, or when packing: llmctl export --engine fused --adapter FOLDER"
        )
    order, changes, left = qkv_order(graph), {}, set(adapter.layers)
    for index, slots in enumerate(graph.layers):
        for slot, place in PLACES.items():
            experts = graph.experts.count if graph.experts and "gate" in slots and place in ("up", "down") else 1
            for expert, names in enumerate(chunks(slots[slot], experts)):
                paths = [targets.module_of(weight) for weight in names]
                layers = [adapter.layers.get(path) for path in paths]
                if any(layers):
                    change = _fused(layers, [widths[weight] for weight in names])
                    changes[index, place, expert] = _ordered(change, order) if place == "qkv" else change
                left -= set(paths)
    if left:
        raise CheckpointError(f"the adapter {name} changes {sorted(left)[0]}, which is no linear of the fused decoder")
    return PackedAdapter(name, changes)


def widths_of(plugin: Any, dims: Any) -> dict[str, int]:
    """Name of every linear in the layers of a model -> its outputs."""
    rows = targets.linears(plugin.card, dims).values()
    return {tensor.name: tensor.shape[-1] for tensor in rows}


def pack_prefix(prefix: Prefix, graph: DecoderSpec) -> Float:
    """Keys and values of virtual tokens [layers, 2, P, K, H], each head's keys in the order of packed ones.

    A prefix in memory holds keys as the family's layer caches them: turned already, and where neighbours are turned
    together in the order of packed keys already.
    """
    values = np.array(prefix.values, np.float32)
    if graph.rope is not None and graph.rope.pairs == "2d":
        values[:, 0] = values[:, 0][..., element_order(graph)]
    return values


def merged_state(state: Mapping[str, Any], opened: OpenedAdapter, adapter: bool = True) -> dict[str, Any]:
    """The tensors of an adapter's base as they are with it, or as it saw them: quantised where that was so in training.

    Args:
        state: Of the base, as ``checkpoint.convert.open_source`` gives it.
        opened: A low-rank adapter and its base.
        adapter: Whether the adapter is added.
    """
    assert isinstance(opened.adapter, Adapter)
    parts = opened.adapter.layers if adapter else {}
    changed = dict(state)
    for path in targets.linears(opened.plugin.card, opened.dims):
        weight, part = path + ".weight", parts.get(path)
        if part is not None or opened.quantised:
            changed[weight] = MergedWeight(state[weight], part, "float32", opened.quantised)
    return changed


def _fused(layers: Sequence[LoraWeights | None], widths: Sequence[int]) -> Adapted:
    """A and B of a packed linear, which fuses several layers; the scales are multiplied into B."""
    fused = fuse([layer.folded() if layer else None for layer in layers], widths)
    return Adapted(np.ascontiguousarray(fused.a, np.float32), np.ascontiguousarray(fused.b, np.float32))


def _ordered(change: Adapted, order: Order) -> Adapted:
    return Adapted(change.a, np.ascontiguousarray(change.b[:, order]))
