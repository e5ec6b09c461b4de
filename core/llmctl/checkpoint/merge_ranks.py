"""Files of tensor-parallel ranks put together: tensors of the card from what each rank holds of them.

A rank's file is that of a smaller model, so its names and packing are read as such, and what comes out is joined by the
family's rules.
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
from llmctl.checkpoint.formats.pdparams import HeldTensor, read_header
from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.checkpoint.load import TIED_HEADS
from llmctl.checkpoint.naming import HF, NATIVE, recognise, renames_for
from llmctl.checkpoint.shards import merge
from llmctl.checkpoint.slices import piece_shape, put, taken
from llmctl.errors import CheckpointError

Rank = Mapping[str, TensorInfo]


def read_ranks(files: Sequence[Path], plugin: Any, dims: Dims) -> dict[str, TensorInfo]:
    """The whole tensors under the card's names; those that the card does not have keep their names and are not joined.

    Raises:
        CheckpointError: The ranks do not fit each other or the rules.
    """
    folder, degree = files[0].parent, len(files)
    ranks = [read_header(file) for file in files]
    for name in ranks[0]:
        held = sum(name in rank for rank in ranks)
        if held != degree:
            raise CheckpointError(f"{name} is in {held} of {degree} shards in {folder}")
    try:
        rules = plugin.hooks.tensor_parallel_rules(card=plugin.card, dims=dims, degree=degree)
    except ValueError as error:
        raise CheckpointError(f"{folder} has shards of {degree} ranks: {error}") from None
    local, whole = (_renames(ranks[0], plugin, d) for d in (_local(plugin.card, dims, degree), dims))
    shapes = {tensor.name: tensor.shape for tensor in plugin.card.expand(dims)}
    tensors: dict[str, TensorInfo] = {}
    for ours, theirs in zip(whole, local, strict=True):
        if theirs.source in ranks[0]:
            try:
                _add(tensors, ranks, theirs, ours, shapes[ours.target], rules.get(ours.target))
            except ValueError as error:
                raise CheckpointError(f"{theirs.source} in {folder}: {error}") from None
    read = {rename.source for rename in local}
    return {**tensors, **{n: t for n, t in ranks[0].items() if n not in read and not _tied_head(n, ranks)}}


def _local(card: Family, dims: Dims, degree: int) -> Dims:
    """Dims of what a rank holds; key-value heads fewer than ranks lie whole in each."""
    symbols = {*CUT_SYMBOLS, *(symbol for param in card.params for symbol in param.shard or ())}
    return dims.replace(**{s: dims[s] // degree for s in symbols if s in dims and dims[s] % degree == 0})


def _renames(rank: Rank, plugin: Any, dims: Dims) -> list[WeightMapping]:
    layout, renames = recognise(rank, plugin, dims)
    return renames_for(NATIVE, plugin, dims) if layout == HF else renames


def _add(
    tensors: dict[str, TensorInfo],
    ranks: Sequence[Rank],
    theirs: WeightMapping,
    ours: WeightMapping,
    shape: tuple[int, ...],
    rule: Split | None,
) -> None:
    """Joins what the ranks hold of a tensor, or of a part of it."""
    first = ranks[0][theirs.source]
    parts = [taken(rank[theirs.source].read(), theirs) for rank in ranks]
    values = _join(parts, piece_shape(shape, ours.dst_slice), rule if ours.dst_slice is None else None)
    if ours.dst_slice is not None:
        held = tensors.get(ours.target)
        target = held.values if isinstance(held, HeldTensor) else np.empty(shape, values.dtype)
        put(target, values, ours.dst_slice)
        values = target
    tensors[ours.target] = HeldTensor(values.shape, first.dtype, first.file, 0, values=values)


def _join(parts: Sequence[NDArray[Any]], shape: tuple[int, ...], rule: Split | None) -> NDArray[Any]:
    """By the rule; what each rank holds whole must be the same in all; anything else is cut along one axis."""
    if len({(part.shape, part.dtype) for part in parts}) > 1:
        raise ValueError("the ranks hold tensors of different shapes or dtypes")
    if parts[0].shape == shape:
        if any(not np.array_equal(part, parts[0]) for part in parts):
            raise ValueError("the ranks hold different values of a tensor that is not divided")
        return parts[0]
    if rule is not None:
        return merge(parts, rule)
    for axis, length in enumerate(shape):
        if (*shape[:axis], length // len(parts), *shape[axis + 1 :]) == parts[0].shape:
            return np.concatenate(parts, axis=axis)
    raise ValueError(
        f"each of {len(parts)} ranks holds {list(parts[0].shape)}, but the whole is {list(shape)}; "
        "is the shard of another rank absent?"
    )


def _tied_head(name: str, ranks: Sequence[Rank]) -> bool:
    """Whether a head repeats another tensor in every rank, as the embedding that it shares."""
    if name not in TIED_HEADS:
        return False
    others = [other for other in ranks[0] if other != name and ranks[0][other].shape == ranks[0][name].shape]
    return any(all(np.array_equal(rank[name].read(), rank[other].read()) for rank in ranks) for other in others)
