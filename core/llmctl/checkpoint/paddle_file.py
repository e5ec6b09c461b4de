"""Paddle's ``.pdparams``: a pickle of names and numpy arrays, read without running any code in it.

The format holds no offsets, so a file is read as a whole: memory is the file. Shards of tensor-parallel ranks are put
together in ``ranks``.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.checkpoint.dtypes import STORAGE, cast
from llmctl.checkpoint.tensor_info import TensorInfo
from llmctl.errors import CheckpointError

NAME = "model_state.pdparams"
SHARD = re.compile(r"model_state\.tp(\d+)\.pdparams")
_STRUCTURE = "StructuredToParameterName@@"
_NAMES = {dtype.str: name for name, dtype in STORAGE.items() if name != "bfloat16"}
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): dict,
}


@dataclass(frozen=True)
class HeldTensor(TensorInfo):
    """A tensor whose values are in memory already."""

    values: NDArray[Any] = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    def read_into(self, out: NDArray[Any], dtype: str, start: int = 0) -> None:
        """Fills ``out`` with rows from ``start`` on, as for a tensor in a file.

        Raises:
            CheckpointError: A value does not fit into ``dtype``.
        """
        rows = self.values[start : start + len(out)] if out.ndim else self.values
        try:
            out[...] = cast(np.ascontiguousarray(rows), self.dtype, dtype).reshape(out.shape)
        except ValueError as error:
            raise CheckpointError(f"{self.file}: {error}") from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}, which weights have no need of")
        return _ALLOWED[module, name]


def read_header(path: Path) -> dict[str, HeldTensor]:
    """The tensors of a file, by name; 16-bit whole numbers are bfloat16, as paddle stores it.

    Raises:
        CheckpointError: The file is damaged or holds anything but arrays.
    """
    try:
        with open(path, "rb") as stream:
            content = _Unpickler(stream).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read as paddle's weights: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not names and arrays")
    content.pop(_STRUCTURE, None)
    return {str(name): _held(path, str(name), values) for name, values in content.items()}


def shards(folder: Path) -> list[Path]:
    """The files of tensor-parallel ranks, in order.

    Raises:
        CheckpointError: A rank is absent.
    """
    found = {int(match[1]): file for file in folder.glob("*.pdparams") if (match := SHARD.fullmatch(file.name))}
    absent = sorted(set(range(max(found, default=-1) + 1)) - set(found))
    if absent:
        raise CheckpointError(f"{folder} has shards of {len(found)} ranks; absent: {', '.join(map(str, absent))}")
    return [found[rank] for rank in sorted(found)]


def _held(path: Path, name: str, values: Any) -> HeldTensor:
    if not isinstance(values, np.ndarray):
        raise CheckpointError(f"{path}: {name} is a {type(values).__name__}, not an array")
    dtype = "bfloat16" if values.dtype == np.uint16 else _NAMES.get(values.dtype.str)
    if dtype is None:
        raise CheckpointError(f"{path}: {name} has the dtype {values.dtype}; supported: {', '.join(STORAGE)}")
    return HeldTensor(values.shape, dtype, path, 0, values=values)
