"""Renames from a table of modules, for files whose names or packing differ from a card's.

A family states where each of its modules lies in such files; weights and biases go the same way. Nothing here imports
paddle or numpy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.card.family import Family, prefixed


@dataclass(frozen=True)
class Piece:
    """A module in a file, as a whole or in part; fields as those of ``Rename``, ``name`` as in a card's rows."""

    name: str
    part: Part | None = None
    place: Part | None = None
    way: str = ""
    transpose: bool = False


Table = Mapping[str, str | Sequence[Piece]]
"""Module on a card (a row's name up to its last dot) -> its name or its pieces in a file."""


def by_module(card: Family, dims: Mapping[str, Any], table: Table, prefix: str | None = None) -> list[Rename]:
    """The renames of all tensors of the card.

    Args:
        card: The family.
        dims: Of the model.
        table: Where modules lie; those that are not in it have the same name in the file.
        prefix: Put before names in the file unless they begin with ``/``; None = the card's own.
    """
    prefix = card.paddle_prefix if prefix is None else prefix
    renames = []
    for tensor in card.expand(dims):
        module, _, leaf = tensor.param.name.rpartition(".")
        pieces = table.get(module, module)
        for piece in (Piece(pieces),) if isinstance(pieces, str) else pieces:
            name = prefixed(piece.name, prefix).format(layer=tensor.layer, expert=tensor.expert)
            renames.append(Rename(f"{name}.{leaf}", tensor.name, piece.transpose, piece.part, piece.place, piece.way))
    return renames


def in_groups(dims: Mapping[str, Any]) -> tuple[Part, Part, Part]:
    """Queries, keys and values in a projection that holds them group by group: a key-value head after its queries."""
    queries, groups = dims["heads"] // dims["kv_heads"], dims["kv_heads"]
    bounds = ((0, queries), (queries, queries + 1), (queries + 1, queries + 2))
    q, k, v = (Part(start, stop, queries + 2, groups) for start, stop in bounds)
    return q, k, v


def one_after_another(*sizes: int) -> list[Part]:
    """Stretches of these sizes that fill an axis in order."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [Part(start, start + size, sum(sizes)) for start, size in zip(starts, sizes, strict=True)]


def optionally_fused(modules: Sequence[str], fused: str, parts: Sequence[Part], way: str) -> Table:
    """Rows for modules that lie in files under their own names, or as parts of one module."""
    return {module: (Piece(module), Piece(fused, part, way=way)) for module, part in zip(modules, parts, strict=True)}


def optionally_apart(packed: str, modules: Sequence[str], places: Sequence[Part], way: str = "apart") -> Table:
    """A row for a module that lies in files under its own name, or as several modules that are put to these places."""
    pieces = [Piece(module, place=place, way=way) for module, place in zip(modules, places, strict=True)]
    return {packed: (Piece(packed), *pieces)}


def optionally_alternating(module: str, halves: int, length: int, way: str = "apart") -> Table:
    """A row for a module of so many stretches of ``length`` one after another, which lie in files by turns or as here."""
    places = one_after_another(*[1] * halves)
    parts = [Part(index, index + 1, halves, length) for index in range(halves)]
    pieces = [Piece(module, part, place, way) for part, place in zip(parts, places, strict=True)]
    return {module: (Piece(module), *pieces)}


def hf_decoder_fused(dims: Mapping[str, Any]) -> Table:
    """Rows for decoders with HF's module names, whose files may have fused projections of attention and feed-forward."""
    attention, mlp = "layers.{layer}.self_attn.", "layers.{layer}.mlp."
    qkv = [attention + name for name in ("q_proj", "k_proj", "v_proj")]
    up = [mlp + name for name in ("gate_proj", "up_proj")]
    return {
        **optionally_fused(qkv, attention + "qkv_proj", in_groups(dims), "qkv"),
        **optionally_fused(up, mlp + "gate_up_fused_proj", one_after_another(1, 1), "ffn"),
    }


def chosen(renames: Sequence[Rename], known: Collection[str]) -> list[Rename]:
    """The renames that read a file with these tensors: for each target, of the packing that the file has."""
    common = {rename.source for rename in renames if not rename.way}
    present = {rename.way for rename in renames if rename.source in known and rename.source not in common}
    ways: dict[str, str] = {}
    for rename in renames:
        if rename.way in present or not rename.way:
            ways[rename.target] = ways.get(rename.target) or rename.way
    return [rename for rename in renames if rename.way == ways.get(rename.target)]


@dataclass(frozen=True)
class Part:
    """A share of an axis that consists of ``blocks`` equal blocks of ``of`` equal units: in each block, some units.

    Attributes:
        start: First unit of a block.
        stop: Unit after the last.
        of: Units in a block.
        blocks: Number of blocks; 1 = the share is contiguous.
    """

    start: int
    stop: int
    of: int
    blocks: int = 1


@dataclass(frozen=True)
class Rename:
    """A tensor of a file and where it goes, or a part of it that goes into a part of a tensor of the card.

    Parts are of the last axis as paddle stores it: the outputs of a linear.

    Attributes:
        source: Name in the file.
        target: Name in the layer's state dict.
        transpose: The file stores ``[out, in]``, paddle ``[in, out]``.
        part: What is taken of the source; None = all of it.
        place: Where it lies in the target; None = it is the target.
        way: Where files come in several packings, the name of one of them. Its renames are used, for their targets, in a
            file that has a tensor which only this packing has; ``""`` = those of any other file.
    """

    source: str
    target: str
    transpose: bool = False
    part: Part | None = None
    place: Part | None = None
    way: str = ""
