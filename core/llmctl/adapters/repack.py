"""Converts adapters between the layers of a file and those of the card, where one fuses layers and the other does not.

The weight mappings say which outputs correspond. Outputs of a layer are columns of B, so a slice of the outputs has the same
A and those columns of B; a fused layer has the As concatenated, and the Bs in separate rows. Both are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from llmctl.adapters.adapter import LoraWeights
from llmctl.adapters.targets import module_of
from llmctl.card.weight_map import TensorSlice, WeightMapping
from llmctl.checkpoint import slices

Shapes = Mapping[str, tuple[int, ...]]
"""Path on the card -> [in, out] of every linear layer."""

LoraSlice = tuple[LoraWeights, "TensorSlice | None", "TensorSlice | None"]
"""(adapter, slice of its outputs, slice of the outputs of the result)."""


def linear_mappings(mappings: Sequence[WeightMapping], shapes: Shapes) -> list[WeightMapping]:
    """The mappings of the weights of linear layers, for matrices in paddle's layout."""
    return [
        replace(mapping, transpose=False)
        for mapping in mappings
        if mapping.target.endswith(".weight") and module_of(mapping.target) in shapes
    ]


def shapes_in_file(mappings: Sequence[WeightMapping], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Path in the file -> [in, out] of every layer."""
    return {module_of(r.source): slices.source_shape(shapes[module_of(r.target)], r) for r in mappings}


def from_file(
    layers: Mapping[str, LoraWeights], mappings: Sequence[WeightMapping], shapes: Shapes
) -> dict[str, LoraWeights]:
    """Converts adapters of layers in a file to adapters of layers on the card."""
    slices_of: dict[str, list[LoraSlice]] = {}
    for mapping in mappings:
        if module_of(mapping.source) in layers:
            piece = layers[module_of(mapping.source)], mapping.src_slice, mapping.dst_slice
            slices_of.setdefault(module_of(mapping.target), []).append(piece)
    return {path: _join(slices_of[path], shapes[path][1]) for path in shapes if path in slices_of}


def to_file(
    parts: Mapping[str, LoraWeights], mappings: Sequence[WeightMapping], shapes: Shapes
) -> dict[str, LoraWeights]:
    """Converts adapters of layers on the card to adapters of layers in a file."""
    slices_of: dict[str, list[LoraSlice]] = {}
    for mapping in mappings:
        if module_of(mapping.target) in parts:
            piece = parts[module_of(mapping.target)], mapping.dst_slice, mapping.src_slice
            slices_of.setdefault(module_of(mapping.source), []).append(piece)
    widths = shapes_in_file(mappings, shapes)
    return {module: _join(rows, widths[module][1]) for module, rows in slices_of.items()}


def equalize_ranks(parts: Mapping[str, LoraWeights]) -> dict[str, LoraWeights]:
    """The same adapters with equal ranks, padded with zeros, and equal scales, multiplied into B."""
    rank, scale = max(part.rank for part in parts.values()), next(iter(parts.values())).scale
    equal = {}
    for path, part in parts.items():
        padding = rank - part.rank
        b = part.b if part.scale == scale else (part.b * (part.scale / scale)).astype(part.b.dtype)
        equal[path] = LoraWeights(np.pad(part.a, ((0, 0), (0, padding))), np.pad(b, ((0, padding), (0, 0))), scale)
    return equal


def _join(lora_slices: Sequence[LoraSlice], width: int) -> LoraWeights:
    """Joins slices to the adapter of a layer with ``width`` outputs."""
    if len(lora_slices) == 1 and lora_slices[0][1:] == (None, None):
        return lora_slices[0][0]
    first = lora_slices[0][0]
    b = np.zeros((sum(part.rank for part, _, _ in lora_slices), width), first.b.dtype)
    row = 0
    for part, src, dst in lora_slices:
        values = slices.slice_view(part.b * np.asarray(part.scale / first.scale, part.b.dtype), src)
        slices.write_slice(b[row : row + part.rank], values, dst)
        row += part.rank
    return LoraWeights(np.concatenate([part.a for part, _, _ in lora_slices], axis=1), b, first.scale)
