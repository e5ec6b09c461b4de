"""Merges the files of tensor-parallel ranks to the tensors of the card.

The file of a rank is read as that of a smaller model, with its names and fused tensors; then the tensors of all ranks are
merged by the tensor-parallel rules of the family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.shapes import CUT_SYMBOLS
from llmctl.card.sharding import Split
from llmctl.card.weight_map import WeightMapping
from llmctl.checkpoint.formats.pdparams import InMemoryTensor, read_header
from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.checkpoint.load import TIED_HEADS
from llmctl.checkpoint.naming import HF, NATIVE, detect_layout, mappings_for
from llmctl.checkpoint.shards import merge
from llmctl.checkpoint.slices import slice_shape, take_slice, write_slice
from llmctl.errors import CheckpointError

RankTensors = Mapping[str, TensorInfo]


def read_ranks(files: Sequence[Path], plugin: Any, dims: Dims) -> dict[str, TensorInfo]:
    """The merged tensors, named as on the card; tensors that the card does not have keep their names and are not merged.

    Raises:
        CheckpointError: The ranks do not fit together or do not fit the rules.
    """
    folder, degree = files[0].parent, len(files)
    ranks = [read_header(file) for file in files]
    for name in ranks[0]:
        present = sum(name in rank for rank in ranks)
        if present != degree:
            raise CheckpointError(f"{name} is in {present} of {degree} shards in {folder}")
    try:
        rules = plugin.hooks.tensor_parallel_rules(card=plugin.card, dims=dims, degree=degree)
    except ValueError as error:
        raise CheckpointError(f"{folder} has shards of {degree} ranks: {error}") from None
    local, whole = (_mappings(ranks[0], plugin, d) for d in (_local(plugin.card, dims, degree), dims))
    shapes = {tensor.name: tensor.shape for tensor in plugin.card.expand(dims)}
    tensors: dict[str, TensorInfo] = {}
    for ours, theirs in zip(whole, local, strict=True):
        if theirs.source in ranks[0]:
            try:
                _add(tensors, ranks, theirs, ours, shapes[ours.target], rules.get(ours.target))
            except ValueError as error:
                raise CheckpointError(f"{theirs.source} in {folder}: {error}") from None
    read = {mapping.source for mapping in local}
    return {**tensors, **{n: t for n, t in ranks[0].items() if n not in read and not _tied_head(n, ranks)}}


def _local(card: Family, dims: Dims, degree: int) -> Dims:
    """Dims of the model of a rank; fewer KV heads than ranks are replicated."""
    symbols = {*CUT_SYMBOLS, *(symbol for param in card.params for symbol in param.shard or ())}
    return dims.replace(**{s: dims[s] // degree for s in symbols if s in dims and dims[s] % degree == 0})


def _mappings(rank: RankTensors, plugin: Any, dims: Dims) -> list[WeightMapping]:
    layout, mappings = detect_layout(rank, plugin, dims)
    return mappings_for(NATIVE, plugin, dims) if layout == HF else mappings


def _add(
    tensors: dict[str, TensorInfo],
    ranks: Sequence[RankTensors],
    theirs: WeightMapping,
    ours: WeightMapping,
    shape: tuple[int, ...],
    rule: Split | None,
) -> None:
    """Merges a tensor, or a slice of it, from all ranks."""
    first = ranks[0][theirs.source]
    parts = [take_slice(rank[theirs.source].read(), theirs) for rank in ranks]
    values = _join(parts, slice_shape(shape, ours.dst_slice), rule if ours.dst_slice is None else None)
    if ours.dst_slice is not None:
        present = tensors.get(ours.target)
        target = present.values if isinstance(present, InMemoryTensor) else np.empty(shape, values.dtype)
        write_slice(target, values, ours.dst_slice)
        values = target
    tensors[ours.target] = InMemoryTensor(values.shape, first.dtype, first.file, 0, values=values)


def _join(parts: Sequence[NDArray[Any]], shape: tuple[int, ...], rule: Split | None) -> NDArray[Any]:
    """Merges by the rule; a replicated tensor must be equal in all ranks, others without a rule are split along one axis."""
    if len({(part.shape, part.dtype) for part in parts}) > 1:
        raise ValueError("the ranks have different shapes or data types")
    if parts[0].shape == shape:
        if any(not np.array_equal(part, parts[0]) for part in parts):
            raise ValueError("the ranks have different values of a replicated tensor")
        return parts[0]
    if rule is not None:
        return merge(parts, rule)
    for axis, length in enumerate(shape):
        if (*shape[:axis], length // len(parts), *shape[axis + 1 :]) == parts[0].shape:
            return np.concatenate(parts, axis=axis)
    raise ValueError(
        f"each of {len(parts)} ranks has {list(parts[0].shape)}, but the merged tensor is {list(shape)}; "
        "is the file of a rank missing?"
    )


def _tied_head(name: str, ranks: Sequence[RankTensors]) -> bool:
    """Whether an LM head equals another tensor in every rank: it is tied to the embedding."""
    if name not in TIED_HEADS:
        return False
    others = [other for other in ranks[0] if other != name and ranks[0][other].shape == ranks[0][name].shape]
    return any(all(np.array_equal(rank[name].read(), rank[other].read()) for rank in ranks) for other in others)
