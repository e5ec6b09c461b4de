"""The weight file of PEFT, and what formats of adapters share: reading, checking and planning single tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llmctl.adapters.adapter import Array
from llmctl.checkpoint.formats import safetensors, torch_bin
from llmctl.checkpoint.formats.dtypes import STORAGE, cast
from llmctl.checkpoint.formats.safetensors import PlannedTensor
from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.errors import CheckpointError

WEIGHTS, TORCH_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"


def as_stored(name: str, values: Array, dtype: str) -> Array:
    """The values in the storage type of a data type, in C order.

    Raises:
        CheckpointError: A value does not fit into the data type.
    """
    try:
        return cast(np.ascontiguousarray(values), values.dtype.name, dtype).astype(STORAGE[dtype], copy=False)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}; save with dtype float32 or bfloat16") from None


def as_planned(name: str, values: Array, dtype: str) -> PlannedTensor:
    """A tensor to write in a data type.

    Raises:
        CheckpointError: A value does not fit into the data type.
    """
    stored = as_stored(name, values, dtype)

    def put(stream: BinaryIO) -> None:
        stream.write(stored.data)

    return PlannedTensor(values.shape, dtype, put)


def headers(folder: Path) -> dict[str, TensorInfo]:
    """Headers of the tensors in the weight file of an adapter.

    Raises:
        CheckpointError: There is no weight file.
    """
    if (folder / WEIGHTS).is_file():
        return safetensors.read_header(folder / WEIGHTS)
    if (folder / TORCH_WEIGHTS).is_file():
        return torch_bin.read_header(folder / TORCH_WEIGHTS)
    raise CheckpointError(f"{folder} has adapter_config.json but neither {WEIGHTS} nor {TORCH_WEIGHTS}")


def check_tensors(folder: Path, tensors: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Checks that a file has exactly the expected tensors.

    Raises:
        CheckpointError: Lists the tensors that are missing, unexpected or have another shape.
    """
    lines = [f"missing: {name}" for name in expected if name not in tensors]
    lines += [f"unexpected: {name} {list(tensors[name].shape)}" for name in tensors if name not in expected]
    lines += [
        f"wrong shape: {name} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if lines:
        more = [f"and {len(lines) - 10} more"] if len(lines) > 10 else []
        raise CheckpointError(
            "\n  ".join([f"the adapter in {folder} does not fit the base model:", *lines[:10], *more])
        )


def load(info: TensorInfo) -> Array:
    """Reads a tensor; half precision as float32."""
    dtype = info.dtype if info.dtype == "float64" else "float32"
    out = np.empty(info.shape, STORAGE[dtype])
    info.read_into(out, dtype)
    return out
