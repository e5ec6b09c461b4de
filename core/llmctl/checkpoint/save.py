"""Weights of a layer into a folder of safetensors as Hugging Face lays it out: the inverse of ``load.py``.

Written tensor by tensor: memory is one tensor beyond the layer. Atomicity is the matter of ``atomic.py``; config and
tokenizer files are written by others into the same folder.
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
from llmctl.checkpoint.formats.safetensors import Planned, write_file
from llmctl.checkpoint.formats.tensor_info import CHUNK_BYTES
from llmctl.checkpoint.load import dtype_name
from llmctl.checkpoint.slices import complete, put, source_shape, view
from llmctl.errors import CheckpointError
from llmctl.io.atomic import atomic_file

DTYPES = ("float64", "float32", "float16", "bfloat16")
KEEP = "keep"
"""Every tensor in the dtype that it has."""


def save_weights(
    folder: str | Path,
    layer_or_state: Any,
    renames: Sequence[WeightMapping],
    dtype: str = "float32",
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes ``model.safetensors``, or shards with an index, under the names that ``renames`` read from.

    Args:
        folder: An existing folder, usually that of ``atomic_folder``.
        layer_or_state: A ``paddle.nn.Layer``, or a mapping of names to paddle tensors or numpy arrays.
        renames: As for loading; parts are packed again, linears transposed back.
        dtype: One of ``DTYPES``, for floats, or ``KEEP``; other tensors keep theirs.
        max_shard_bytes: A file holds no more data than this, unless a single tensor is larger.

    Raises:
        CheckpointError: The dtype is unknown, a value does not fit into it, or the parts of a tensor are incomplete.
    """
    state = layer_or_state.state_dict() if hasattr(layer_or_state, "state_dict") else layer_or_state
    shards = plan_shards(state, renames, dtype, max_shard_bytes)
    for name, shard in shards.items():
        write_file(Path(folder) / name, shard)
    if len(shards) > 1:
        write_index(Path(folder), shards)


def plan_shards(
    state: Mapping[str, Any], renames: Sequence[WeightMapping], dtype: str, max_shard_bytes: int
) -> dict[str, dict[str, Planned]]:
    """File name -> the tensors that go into it, nothing of them read yet; arguments as for `save_weights`.

    Raises:
        CheckpointError: As for `save_weights`.
    """
    if dtype not in (*DTYPES, KEEP):
        raise CheckpointError(f"weights cannot be saved as {dtype!r}; choose one of {', '.join(DTYPES)}")
    shards = _shards(_plan(state, renames, dtype), max_shard_bytes)
    if len(shards) == 1:
        return {SAFETENSORS: shards[0]}
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    return dict(zip(names, shards, strict=True))


def _plan(state: Mapping[str, Any], renames: Sequence[WeightMapping], dtype: str) -> dict[str, Planned]:
    sources: dict[str, list[WeightMapping]] = {}
    for rename in renames:
        sources.setdefault(rename.source, []).append(rename)
    planned = {}
    for source, parts in sources.items():
        absent = [rename.target for rename in parts if rename.target not in state]
        if absent:
            raise CheckpointError(f"{source} cannot be written: there is no tensor {', '.join(absent)}")
        if not complete([rename.src_slice for rename in parts]):
            raise CheckpointError(f"{source} cannot be written: its parts are incomplete")
        first = state[parts[0].target]
        if dtype_name(first) not in STORAGE:
            raise CheckpointError(
                f"{source} is {dtype_name(first)}, which cannot be saved; known: {', '.join(STORAGE)}"
            )
        stored = dtype if dtype != KEEP and dtype_name(first) in FLOATS else dtype_name(first)
        shape = source_shape(tuple(first.shape), parts[0])
        tensors = [(rename, state[rename.target]) for rename in parts]
        planned[source] = Planned(shape, stored, partial(_write, source, shape, tensors, stored))
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
    """The source's values, put together where it consists of parts."""
    whole = None
    for rename, tensor in tensors:
        values = np.asarray(tensor if isinstance(tensor, np.ndarray) else tensor.numpy())
        if rename.src_slice is None and rename.dst_slice is None:
            return values.T if rename.transpose else values
        whole = np.empty(shape, values.dtype) if whole is None else whole
        put(whole.T if rename.transpose else whole, view(values, rename.dst_slice), rename.src_slice)
    assert whole is not None
    return whole


def _shards(planned: Mapping[str, Planned], max_shard_bytes: int) -> list[dict[str, Planned]]:
    shards: list[dict[str, Planned]] = [{}]
    filled = 0
    for name, tensor in planned.items():
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    return shards


def write_index(folder: Path, shards: Mapping[str, Mapping[str, Planned]]) -> str:
    """Writes which file holds which tensor; the name of the index."""
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard.values())
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    with atomic_file(folder / (SAFETENSORS + INDEX)) as file:
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return SAFETENSORS + INDEX
