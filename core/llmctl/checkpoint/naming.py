"""Which names and layout a folder of weights has, and the renames that read it.

``hf``: torch's names, linears [out, in]. ``native``: the card's names, linears [in, out] as paddle computes with them.
``paddlenlp``: PaddleNLP's names and packing, also [in, out]; read only, and ``native`` where they are the card's. Some
releases leave the torch prefix away.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from llmctl.card.dims import Dims
from llmctl.card.weight_map import WeightMapping, select_variant
from llmctl.errors import CheckpointError

HF, NATIVE, PADDLENLP = "hf", "native", "paddlenlp"
LAYOUTS = (HF, NATIVE)
"""Layouts that can be written."""


def renames_for(layout: str, plugin: Any, dims: Dims) -> list[WeightMapping]:
    """The renames that read a folder of this layout, in its full spelling; written files have the first packing.

    Raises:
        CheckpointError: The family's names are the same in both layouts, so that a folder could not be recognised.
    """
    torch = _from(plugin, dims, "torch")
    if layout == HF:
        return select_variant(torch, ())
    if _native_only(torch) == set():
        raise CheckpointError(f"{plugin.card.name} has the same names in both layouts; convert to {HF} only")
    return [WeightMapping(target, target) for target in dict.fromkeys(rename.target for rename in torch)]


def recognise(tensors: Collection[str], plugin: Any, dims: Dims) -> tuple[str, list[WeightMapping]]:
    """The layout of a folder with these tensors, and the renames that read it.

    A name that only one layout has decides. Without a sign of another layout the folder counts as torch's, so that what
    is missing is named as there.
    """
    known, torch = set(tensors), _from(plugin, dims, "torch")
    paddlenlp = _from(plugin, dims, "paddlenlp")
    elsewhere = {name for rename in torch for name in (rename.source, rename.target)}
    if known & ({rename.source for rename in paddlenlp} - elsewhere):
        return PADDLENLP, select_variant(paddlenlp, known)
    if _native_only(torch) & known:
        return NATIVE, renames_for(NATIVE, plugin, dims)
    bare = _without_prefix(torch, plugin.card.torch_prefix)
    if not known & _sources(torch, plugin.card.torch_prefix) and known & {rename.source for rename in bare}:
        return HF, select_variant(bare, known)
    return HF, select_variant(torch, known)


def _from(plugin: Any, dims: Dims, source: str) -> list[WeightMapping]:
    return list(plugin.hooks.weight_map(card=plugin.card, dims=dims, source=source))


def _native_only(torch: Sequence[WeightMapping]) -> set[str]:
    return {rename.target for rename in torch} - {rename.source for rename in torch}


def _sources(renames: Sequence[WeightMapping], prefix: str) -> set[str]:
    return {rename.source for rename in renames if rename.source.startswith(prefix)}


def _without_prefix(renames: Sequence[WeightMapping], prefix: str) -> list[WeightMapping]:
    """Prefix ``model.decoder.`` may be missing as a whole or up to its last part."""
    first = prefix.partition(".")[0] + "." if prefix else ""
    return [replace(rename, source=rename.source.removeprefix(first)) for rename in renames]
