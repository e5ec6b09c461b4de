"""Adapters of layers that a file packs otherwise than a card: taken apart and put together, exactly.

Renames of weights say how. Outputs of a layer are columns of B, so a share of a layer's outputs has the columns of that
share and the same A; a layer made of several has their As side by side and their Bs in rows of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from llmctl.adapters.adapter import Part
from llmctl.adapters.targets import module_of
from llmctl.card.weight_map import TensorSlice, WeightMapping
from llmctl.checkpoint import slices as shares

Shapes = Mapping[str, tuple[int, ...]]
"""[in, out] of each linear of the card."""

Piece = tuple[Part, "TensorSlice | None", "TensorSlice | None"]
"""An adapter, which share of its outputs is taken, and which share of the result's it becomes."""


def linear_renames(renames: Sequence[WeightMapping], shapes: Shapes) -> list[WeightMapping]:
    """Those of the weights of linears, for matrices as paddle lays them out."""
    return [
        replace(rename, transpose=False)
        for rename in renames
        if rename.target.endswith(".weight") and module_of(rename.target) in shapes
    ]


def shapes_in_file(renames: Sequence[WeightMapping], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """[in, out] of each layer of the file."""
    return {module_of(r.source): shares.source_shape(shapes[module_of(r.target)], r) for r in renames}


def from_file(layers: Mapping[str, Part], renames: Sequence[WeightMapping], shapes: Shapes) -> dict[str, Part]:
    """The adapters of the card's layers, from those of the file's."""
    pieces: dict[str, list[Piece]] = {}
    for rename in renames:
        if module_of(rename.source) in layers:
            piece = layers[module_of(rename.source)], rename.src_slice, rename.dst_slice
            pieces.setdefault(module_of(rename.target), []).append(piece)
    return {path: _join(pieces[path], shapes[path][1]) for path in shapes if path in pieces}


def to_file(parts: Mapping[str, Part], renames: Sequence[WeightMapping], shapes: Shapes) -> dict[str, Part]:
    """The adapters of the file's layers, from those of the card's."""
    pieces: dict[str, list[Piece]] = {}
    for rename in renames:
        if module_of(rename.target) in parts:
            piece = parts[module_of(rename.target)], rename.dst_slice, rename.src_slice
            pieces.setdefault(module_of(rename.source), []).append(piece)
    widths = shapes_in_file(renames, shapes)
    return {module: _join(rows, widths[module][1]) for module, rows in pieces.items()}


def uniform(parts: Mapping[str, Part]) -> dict[str, Part]:
    """The same adapters with one rank, filled up with zeros, and one scale, the others' being taken into B."""
    rank, scale = max(part.rank for part in parts.values()), next(iter(parts.values())).scale
    made = {}
    for path, part in parts.items():
        more = rank - part.rank
        b = part.b if part.scale == scale else (part.b * (part.scale / scale)).astype(part.b.dtype)
        made[path] = Part(np.pad(part.a, ((0, 0), (0, more))), np.pad(b, ((0, more), (0, 0))), scale)
    return made


def _join(pieces: Sequence[Piece], width: int) -> Part:
    """One adapter of so many outputs."""
    if len(pieces) == 1 and pieces[0][1:] == (None, None):
        return pieces[0][0]
    first = pieces[0][0]
    b = np.zeros((sum(part.rank for part, _, _ in pieces), width), first.b.dtype)
    row = 0
    for part, taken, place in pieces:
        share = shares.view(part.b * np.asarray(part.scale / first.scale, part.b.dtype), taken)
        shares.put(b[row : row + part.rank], share, place)
        row += part.rank
    return Part(np.concatenate([part.a for part, _, _ in pieces], axis=1), b, first.scale)
