"""Layouts of weight folders, distinguished by tensor names, and the weight mappings that read them.

``hf``: names of Hugging Face, linears [out, in]. ``native``: names of the card, linears [in, out] as in paddle.
``paddlenlp``: names and fused tensors of PaddleNLP, linears [in, out]; can be read, not written, and counts as ``native``
where its names are those of the card. Some releases omit the torch prefix.
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


def mappings_for(layout: str, plugin: Any, dims: Dims) -> list[WeightMapping]:
    """The mappings of a layout, with its full names; for writing, the first variant of fused tensors.

    Raises:
        CheckpointError: The family has the same names in both layouts, so the layout of a folder could not be detected.
    """
    torch = _from(plugin, dims, "torch")
    if layout == HF:
        return select_variant(torch, ())
    if _native_only(torch) == set():
        raise CheckpointError(f"{plugin.card.name} has the same names in both layouts; convert to {HF} only")
    return [WeightMapping(target, target) for target in dict.fromkeys(mapping.target for mapping in torch)]


def detect_layout(tensors: Collection[str], plugin: Any, dims: Dims) -> tuple[str, list[WeightMapping]]:
    """The layout of a folder with these tensors, and the mappings that read it.

    A name that only one layout has decides. Without one, the layout is ``hf``, so missing tensors are reported by those
    names.
    """
    known, torch = set(tensors), _from(plugin, dims, "torch")
    paddlenlp = _from(plugin, dims, "paddlenlp")
    elsewhere = {name for mapping in torch for name in (mapping.source, mapping.target)}
    if known & ({mapping.source for mapping in paddlenlp} - elsewhere):
        return PADDLENLP, select_variant(paddlenlp, known)
    if _native_only(torch) & known:
        return NATIVE, mappings_for(NATIVE, plugin, dims)
    bare = _without_prefix(torch, plugin.card.torch_prefix)
    if not known & _sources(torch, plugin.card.torch_prefix) and known & {mapping.source for mapping in bare}:
        return HF, select_variant(bare, known)
    return HF, select_variant(torch, known)


def _from(plugin: Any, dims: Dims, source: str) -> list[WeightMapping]:
    return list(plugin.hooks.weight_map(card=plugin.card, dims=dims, source=source))


def _native_only(torch: Sequence[WeightMapping]) -> set[str]:
    return {mapping.target for mapping in torch} - {mapping.source for mapping in torch}


def _sources(mappings: Sequence[WeightMapping], prefix: str) -> set[str]:
    return {mapping.source for mapping in mappings if mapping.source.startswith(prefix)}


def _without_prefix(mappings: Sequence[WeightMapping], prefix: str) -> list[WeightMapping]:
    """Mappings without the first component of the torch prefix, such as ``model.`` of ``model.decoder.``."""
    first = prefix.partition(".")[0] + "." if prefix else ""
    return [replace(mapping, source=mapping.source.removeprefix(first)) for mapping in mappings]
