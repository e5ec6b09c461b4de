"""The codes of a checkpoint as the weights of a model's linears: of a whole tensor of the card, and of one rank's part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.weight_map import WeightMapping
from llmctl.checkpoint.bitsandbytes import BlockTensor
from llmctl.checkpoint.formats.tensor_info import CodedTensor, TensorInfo
from llmctl.checkpoint.load import group_by_target
from llmctl.checkpoint.partial import Cut, Done, nothing
from llmctl.checkpoint.quantized import QuantizedTensor
from llmctl.checkpoint.slices import MappedTensor, take_slice, write_slice
from llmctl.io.progress import Progress
from llmctl.quant.formats.codes import Codes

KEPT = (QuantizedTensor, BlockTensor)
"""Classes of tensors whose codes a model in memory keeps."""


def codes_of(
    shape: tuple[int, ...],
    sources: Sequence[MappedTensor],
    table: bool = False,
    kinds: type | tuple[type, ...] = CodedTensor,
) -> Codes | None:
    """The codes of a tensor of the card; None = it is not stored as codes whose inputs have the same groups everywhere.

    Args:
        shape: Its shape, [in, out].
        sources: What it is filled from.
        table: Whether the shape is [out, in].
        kinds: Classes of the tensors whose codes are taken.
    """
    parts: list[tuple[Codes, WeightMapping]] = []
    for info, mapping in sources:
        found: Any = info
        if not isinstance(info, kinds) or mapping.transpose is not (found.outputs_first is not table):
            return None
        codes = found.codes()
        if codes is None:
            return None
        parts.append((codes, replace(mapping, transpose=True)))
    if not parts:
        return None
    first = parts[0][0]
    inputs, outputs = shape[::-1] if table else shape
    groups = first.scales_OG.shape[1]
    codes_IO = np.empty((inputs, outputs), np.int16)
    scales_GO, zeros_GO = (np.empty((groups, outputs), np.float32) for _ in range(2))
    for codes, mapping in parts:
        alike = (codes.levels, codes.dtype) == (first.levels, first.dtype) and codes.scales_OG.shape[1] == groups
        if not alike or not np.array_equal(codes.group_I, first.group_I):
            return None
        pairs: tuple[tuple[NDArray[Any], NDArray[Any]], ...] = (
            (codes_IO, codes.codes_OI), (scales_GO, codes.scales_OG), (zeros_GO, codes.zeros_OG),
        )  # fmt: skip
        for target, values in pairs:
            write_slice(target, take_slice(values, mapping), mapping.dst_slice)
    bits = max(codes.bits for codes, _ in parts)
    return replace(first, bits=bits, codes_OI=codes_IO.T, scales_OG=scales_GO.T, zeros_OG=zeros_GO.T)


def part_of(codes: Codes, name: str, cut: Cut) -> Codes:
    """One rank's part of the codes of a parameter. Ranks that have inputs of the same group have its scales each."""
    rule = cut.splits.get(name)
    if rule is None:
        return codes
    codes_OI = cut.part(name, codes.codes_OI.T).T
    if rule.axis == 1:
        scales_OG, zeros_OG = (cut.part(name, values.T).T for values in (codes.scales_OG, codes.zeros_OG))
        return replace(codes, codes_OI=codes_OI, scales_OG=scales_OG, zeros_OG=zeros_OG)
    held, group_I = np.unique(cut.part(name, codes.group_I[:, None])[:, 0], return_inverse=True)
    return replace(
        codes, codes_OI=codes_OI, scales_OG=codes.scales_OG[:, held], zeros_OG=codes.zeros_OG[:, held], group_I=group_I
    )


def coded_linears(
    tensors: Mapping[str, TensorInfo], mappings: Sequence[WeightMapping], card: Family, dims: Dims
) -> dict[str, Sequence[MappedTensor]]:
    """Weight of each linear in the decoder layers that is stored as integer codes -> what it is filled from."""
    linears = {tensor.name for tensor in card.expand(dims) if tensor.kind == "linear" and tensor.layer is not None}
    return {
        target: sources
        for target, sources in group_by_target(tensors, mappings).items()
        if target in linears and all(isinstance(info, KEPT) for info, _ in sources)
    }


def hold_codes(model: Any, linears: Mapping[str, Sequence[MappedTensor]], cut: Cut, done: Done = nothing) -> None:
    """Replaces linears of a model, whose weights take no memory yet, by ones over this rank's parts of their codes.

    Args:
        model: The model; linears that it lacks are left out.
        linears: Weight of each linear -> what it is filled from.
        cut: How the model is cut among ranks.
        done: Called with each tensor of a linear that has been loaded.
    """
    from llmctl.nn.replace import replace_layers
    from llmctl.quant.linear import QuantizedLinear
    from llmctl.quant.packed import pack

    present = {path for path, _ in model.named_sublayers()}
    here = {path: name for name in linears if (path := name.rpartition(".")[0]) in present}
    with Progress("loading the codes", len(here)) as loaded:

        def over_codes(path: str, layer: Any) -> Any:
            name = here[path]
            codes = codes_of(tuple(layer.weight.shape), linears[name], kinds=KEPT)
            if codes is not None:
                layer = QuantizedLinear(layer, pack(part_of(codes, name, cut)))
                for key, tensor in layer.named_buffers():
                    done(f"{path}.{key}", tensor)
            loaded(1)
            return layer

        replace_layers(model, here, over_codes)
