"""Saves the weights of a layer as safetensors, in the layout of a weight map: the inverse of ``load``.

Memory: the layer, plus one tensor. Atomic writes are in ``io.atomic``; callers write config.json and the tokenizer into the
same folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmctl.card.weight_map import WeightMapping
from llmctl.checkpoint.folder import INDEX, SAFETENSORS
from llmctl.checkpoint.formats.dtypes import FLOATS, STORAGE, cast
from llmctl.checkpoint.formats.safetensors import PlannedTensor, write_file
from llmctl.checkpoint.formats.tensor_info import CHUNK_BYTES
from llmctl.checkpoint.load import dtype_name
from llmctl.checkpoint.slices import covers_axis, slice_view, source_shape, write_slice
from llmctl.errors import CheckpointError
from llmctl.io.atomic import atomic_file

DTYPES = ("float64", "float32", "float16", "bfloat16")
KEEP = "keep"
"""Keep the data type of every tensor."""


def save_weights(
    folder: str | Path,
    layer_or_state: Any,
    mappings: Sequence[WeightMapping],
    dtype: str = "float32",
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes ``model.safetensors``, or shards with an index, under the names that ``mappings`` read from.

    Args:
        folder: An existing folder, usually that of ``atomic_folder``.
        layer_or_state: A ``paddle.nn.Layer``, or name -> paddle tensor or numpy array.
        mappings: The mappings that load the folder; slices are fused and linears transposed back.
        dtype: Data type of floating-point weights: one of ``DTYPES`` or ``KEEP``.
        max_shard_bytes: Maximum size of a file, unless a single tensor is larger.

    Raises:
        CheckpointError: The data type is unknown, a value does not fit into it, or slices of a tensor are missing.
    """
    state = layer_or_state.state_dict() if hasattr(layer_or_state, "state_dict") else layer_or_state
    shards = plan_shards(state, mappings, dtype, max_shard_bytes)
    for name, shard in shards.items():
        write_file(Path(folder) / name, shard)
    if len(shards) > 1:
        write_index(Path(folder), shards)


def save_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Writes tensors under their own names and in their own types into one file, which does not depend on their order.

    Args:
        path: The file.
        tensors: Name -> paddle tensor, numpy array or what has ``shape``, ``dtype`` and ``numpy()``; one at a time is read.
    """
    planned = {
        name: PlannedTensor(tuple(tensor.shape), dtype_name(tensor), partial(_write_whole, tensor))
        for name, tensor in sorted(tensors.items())
    }
    write_file(path, planned)


def _write_whole(tensor: Any, stream: BinaryIO) -> None:
    values = tensor if isinstance(tensor, np.ndarray) else tensor.numpy()
    stream.write(np.ascontiguousarray(values).data)


def plan_shards(
    state: Mapping[str, Any], mappings: Sequence[WeightMapping], dtype: str, max_shard_bytes: int
) -> dict[str, dict[str, PlannedTensor]]:
    """File name -> tensors to write, not yet read; arguments as for ``save_weights``.

    Raises:
        CheckpointError: See ``save_weights``.
    """
    return shards_of(plan_tensors(state, mappings, dtype), max_shard_bytes)


def shards_of(planned: Mapping[str, PlannedTensor], max_shard_bytes: int) -> dict[str, dict[str, PlannedTensor]]:
    """File name -> its tensors.

    Args:
        planned: Name -> tensor.
        max_shard_bytes: As for ``save_weights``.
    """
    shards = _shards(planned, max_shard_bytes)
    if len(shards) == 1:
        return {SAFETENSORS: shards[0]}
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    return dict(zip(names, shards, strict=True))


def plan_tensors(state: Mapping[str, Any], mappings: Sequence[WeightMapping], dtype: str) -> dict[str, PlannedTensor]:
    """Name in the file -> the tensor to write, not yet read; arguments as for ``save_weights``.

    Raises:
        CheckpointError: See ``save_weights``.
    """
    if dtype not in (*DTYPES, KEEP):
        raise CheckpointError(f"weights cannot be saved as {dtype!r}; choose one of {', '.join(DTYPES)}")
    sources: dict[str, list[WeightMapping]] = {}
    for mapping in mappings:
        sources.setdefault(mapping.source, []).append(mapping)
    planned = {}
    for source, parts in sources.items():
        absent = [mapping.target for mapping in parts if mapping.target not in state]
        if absent:
            raise CheckpointError(f"{source} cannot be written: {', '.join(absent)} is missing")
        if not covers_axis([mapping.src_slice for mapping in parts]):
            raise CheckpointError(f"{source} cannot be written: slices of it are missing")
        first = state[parts[0].target]
        if dtype_name(first) not in STORAGE:
            raise CheckpointError(
                f"{source} is {dtype_name(first)}, which cannot be saved; known: {', '.join(STORAGE)}"
            )
        stored = dtype if dtype != KEEP and dtype_name(first) in FLOATS else dtype_name(first)
        shape = source_shape(tuple(first.shape), parts[0])
        tensors = [(mapping, state[mapping.target]) for mapping in parts]
        planned[source] = PlannedTensor(shape, stored, partial(_write, source, shape, tensors, stored))
    return planned


def _write(
    source: str, shape: tuple[int, ...], tensors: Sequence[tuple[WeightMapping, Any]], stored: str, stream: BinaryIO
) -> None:
    dtype, rows = dtype_name(tensors[0][1]), np.atleast_1d(_joined(shape, tensors))
    step = max(1, CHUNK_BYTES // max(1, prod(rows.shape[1:]) * rows.itemsize))
    for low in range(0, len(rows), step):
        chunk = np.ascontiguousarray(rows[low : low + step])
        try:
            stream.write(cast(chunk, dtype, stored).astype(STORAGE[stored], copy=False).data)
        except ValueError as error:
            raise CheckpointError(f"{source}: {error}; save with dtype float32 or bfloat16") from None


def _joined(shape: tuple[int, ...], tensors: Sequence[tuple[WeightMapping, Any]]) -> NDArray[Any]:
    """The values of a source; slices are fused."""
    whole = None
    for mapping, tensor in tensors:
        values = np.asarray(tensor if isinstance(tensor, np.ndarray) else tensor.numpy())
        if mapping.src_slice is None and mapping.dst_slice is None:
            return values.T if mapping.transpose else values
        whole = np.empty(shape, values.dtype) if whole is None else whole
        write_slice(whole.T if mapping.transpose else whole, slice_view(values, mapping.dst_slice), mapping.src_slice)
    assert whole is not None
    return whole


def _shards(planned: Mapping[str, PlannedTensor], max_shard_bytes: int) -> list[dict[str, PlannedTensor]]:
    shards: list[dict[str, PlannedTensor]] = [{}]
    filled = 0
    for name, tensor in planned.items():
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    return shards


def write_index(folder: Path, shards: Mapping[str, Mapping[str, PlannedTensor]]) -> str:
    """Writes the index of shards; returns its name."""
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard.values())
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    with atomic_file(folder / (SAFETENSORS + INDEX)) as file:
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return SAFETENSORS + INDEX
