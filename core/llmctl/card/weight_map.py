"""Mapping the tensors of a checkpoint file to those of a card, where names or packing differ.

A family lists where each of its modules is stored; weights and biases follow the module. Nothing here imports paddle or
numpy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.card.family import Family, prefixed


@dataclass(frozen=True)
class TensorSlice:
    """A slice of an axis that is divided into ``blocks`` equal blocks of ``of`` equal units: the same units of each block.

    Attributes:
        start: First unit of each block.
        stop: Unit after the last.
        of: Units in a block.
        blocks: Number of blocks; 1 = the slice is contiguous.
    """

    start: int
    stop: int
    of: int
    blocks: int = 1


@dataclass(frozen=True)
class WeightMapping:
    """A tensor of a file and its target, or a slice of it that goes into a slice of the target.

    Slices are of the last axis as paddle stores it: the outputs of a linear.

    Attributes:
        source: Name in the file.
        target: Name in the model's state dict.
        transpose: The file stores ``[out, in]``, paddle ``[in, out]``.
        src_slice: Slice of the source; None = all of it.
        dst_slice: Slice of the target; None = all of it.
        variant: Name of a packing, where files come in several. Its mappings apply to a file that has a tensor which only
            this packing has; ``""`` = any other file.
    """

    source: str
    target: str
    transpose: bool = False
    src_slice: TensorSlice | None = None
    dst_slice: TensorSlice | None = None
    variant: str = ""


@dataclass(frozen=True)
class ModuleMapping:
    """A module of a file, or a slice of it; fields as those of ``WeightMapping``, ``name`` as in a card's rows."""

    name: str
    src_slice: TensorSlice | None = None
    dst_slice: TensorSlice | None = None
    variant: str = ""
    transpose: bool = False


ModuleTable = Mapping[str, str | Sequence[ModuleMapping]]
"""Module on a card (a row's name up to its last dot) -> its name in a file, or the modules that it is read from."""


def map_modules(
    card: Family, dims: Mapping[str, Any], table: ModuleTable, prefix: str | None = None
) -> list[WeightMapping]:
    """The mappings of all tensors of the card.

    Args:
        card: The family.
        dims: Dims of the model.
        table: Where modules are stored; those that are not listed have the same name in the file.
        prefix: Put before names in the file unless they begin with ``/``; None = the card's own.
    """
    prefix = card.paddle_prefix if prefix is None else prefix
    mappings = []
    for tensor in card.expand(dims):
        module, _, leaf = tensor.param.name.rpartition(".")
        sources = table.get(module, module)
        for row in (ModuleMapping(sources),) if isinstance(sources, str) else sources:
            source = prefixed(row.name, prefix).format(layer=tensor.layer, expert=tensor.expert) + f".{leaf}"
            mappings.append(
                WeightMapping(source, tensor.name, row.transpose, row.src_slice, row.dst_slice, row.variant)
            )
    return mappings


def grouped_qkv_slices(dims: Mapping[str, Any]) -> tuple[TensorSlice, TensorSlice, TensorSlice]:
    """Queries, keys and values of a fused projection with a key and a value head after each group of query heads."""
    queries, groups = dims["heads"] // dims["kv_heads"], dims["kv_heads"]
    bounds = ((0, queries), (queries, queries + 1), (queries + 1, queries + 2))
    q, k, v = (TensorSlice(start, stop, queries + 2, groups) for start, stop in bounds)
    return q, k, v


def contiguous_slices(*sizes: int) -> list[TensorSlice]:
    """Slices of these sizes that fill an axis in order."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [TensorSlice(start, start + size, sum(sizes)) for start, size in zip(starts, sizes, strict=True)]


def fused_or_split(modules: Sequence[str], fused: str, slices: Sequence[TensorSlice], variant: str) -> ModuleTable:
    """Rows for modules that files store under their own names, or as slices of one fused module."""
    return {
        module: (ModuleMapping(module), ModuleMapping(fused, part, variant=variant))
        for module, part in zip(modules, slices, strict=True)
    }


def split_or_fused(
    fused: str, modules: Sequence[str], slices: Sequence[TensorSlice], variant: str = "split"
) -> ModuleTable:
    """A row for a fused module that files store under its own name, or split into modules that fill these slices."""
    rows = [
        ModuleMapping(module, dst_slice=part, variant=variant) for module, part in zip(modules, slices, strict=True)
    ]
    return {fused: (ModuleMapping(fused), *rows)}


def interleaved_or_contiguous(module: str, parts: int, length: int, variant: str = "split") -> ModuleTable:
    """A row for a fused module whose ``parts`` of ``length`` columns are contiguous or interleaved column by column."""
    rows = [
        ModuleMapping(module, TensorSlice(index, index + 1, parts, length), part, variant)
        for index, part in enumerate(contiguous_slices(*[1] * parts))
    ]
    return {module: (ModuleMapping(module), *rows)}


def hf_decoder_fused(dims: Mapping[str, Any]) -> ModuleTable:
    """Rows for decoders with HF's module names, whose files may fuse the projections of attention and feed-forward."""
    attention, mlp = "layers.{layer}.self_attn.", "layers.{layer}.mlp."
    qkv = [attention + name for name in ("q_proj", "k_proj", "v_proj")]
    up = [mlp + name for name in ("gate_proj", "up_proj")]
    return {
        **fused_or_split(qkv, attention + "qkv_proj", grouped_qkv_slices(dims), "qkv"),
        **fused_or_split(up, mlp + "gate_up_fused_proj", contiguous_slices(1, 1), "ffn"),
    }


def select_variant(mappings: Sequence[WeightMapping], known: Collection[str]) -> list[WeightMapping]:
    """The mappings that read a file with these tensors: for each target, those of the variant that the file holds."""
    common = {mapping.source for mapping in mappings if not mapping.variant}
    present = {mapping.variant for mapping in mappings if mapping.source in known and mapping.source not in common}
    variants: dict[str, str] = {}
    for mapping in mappings:
        if mapping.variant in present or not mapping.variant:
            variants[mapping.target] = variants.get(mapping.target) or mapping.variant
    return [mapping for mapping in mappings if mapping.variant == variants.get(mapping.target)]
