"""Which names and layout a folder of weights has, and the renames that read it.

``hf``: torch's names, linears [out, in]. ``native``: the card's names, linears [in, out] as paddle computes with them,
which is also how PaddleNLP lays out safetensors. Some releases leave the torch prefix away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmctl.card import Dims
from llmctl.errors import CheckpointError
from llmctl.hookspecs import Rename

HF, NATIVE = "hf", "native"
LAYOUTS = (HF, NATIVE)


def renames_for(layout: str, plugin: Any, dims: Dims) -> list[Rename]:
    """The renames that read a folder of this layout, in its full spelling.

    Raises:
        CheckpointError: The family's names are the same in both layouts, so that a folder could not be recognised.
    """
    torch = list(plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch"))
    if layout == HF:
        return torch
    if _native_only(torch) == set():
        raise CheckpointError(f"{plugin.card.name} has the same names in both layouts; convert to {HF} only")
    return [Rename(rename.target, rename.target) for rename in torch]


def recognise(tensors: Mapping[str, Any], plugin: Any, dims: Dims) -> tuple[str, list[Rename]]:
    """The layout of a folder with these tensors, and the renames that read it.

    Without a sign of the native layout the folder counts as torch's, so that what is missing is named as there.
    """
    torch = renames_for(HF, plugin, dims)
    if _native_only(torch) & set(tensors):
        return NATIVE, renames_for(NATIVE, plugin, dims)
    bare = _without_prefix(torch, plugin.card.torch_prefix)
    known = set(tensors)
    if not known & _sources(torch, plugin.card.torch_prefix) and known & {rename.source for rename in bare}:
        return HF, bare
    return HF, torch


def _native_only(torch: Sequence[Rename]) -> set[str]:
    return {rename.target for rename in torch} - {rename.source for rename in torch}


def _sources(renames: Sequence[Rename], prefix: str) -> set[str]:
    return {rename.source for rename in renames if rename.source.startswith(prefix)}


def _without_prefix(renames: Sequence[Rename], prefix: str) -> list[Rename]:
    """Prefix ``model.decoder.`` may be missing as a whole or up to its last part."""
    first = prefix.partition(".")[0] + "." if prefix else ""
    return [replace(rename, source=rename.source.removeprefix(first)) for rename in renames]
