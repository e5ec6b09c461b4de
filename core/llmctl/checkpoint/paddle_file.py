"""Paddle's ``.pdparams``: a pickle of names and numpy arrays, read without running any code in it.

The format holds no offsets, so a file is read as a whole: memory is the file. Shards of tensor-parallel ranks are joined
by a family's rules.
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
from llmctl.checkpoint.splits import merge
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


def read_header(path: Path) -> dict[str, TensorInfo]:
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


def read_shards(files: list[Path], plugin: Any, dims: Any) -> dict[str, TensorInfo]:
    """The whole tensors of the ranks' files, put together by the family's rules.

    Raises:
        CheckpointError: The ranks do not fit each other or the rules.
    """
    ranks = [read_header(file) for file in files]
    try:
        rules = plugin.hooks.tensor_parallel_rules(card=plugin.card, dims=dims, degree=len(files))
    except ValueError as error:
        raise CheckpointError(f"{files[0].parent} has shards of {len(files)} ranks: {error}") from None
    whole = {}
    for name in ranks[0]:
        parts = [rank[name].values for rank in ranks if name in rank]  # type: ignore[attr-defined]
        if len(parts) != len(ranks):
            raise CheckpointError(f"{name} is in {len(parts)} of {len(ranks)} shards in {files[0].parent}")
        try:
            values = merge(parts, rules[name]) if name in rules else _same(name, parts)
        except ValueError as error:
            raise CheckpointError(f"{name} in {files[0].parent}: {error}") from None
        whole[name] = HeldTensor(values.shape, ranks[0][name].dtype, files[0], 0, values=values)
    return dict(whole)


def _same(name: str, parts: list[NDArray[Any]]) -> NDArray[Any]:
    if any(not np.array_equal(part, parts[0]) for part in parts):
        raise ValueError("the ranks hold different values of a tensor that is not divided")
    return parts[0]


def _held(path: Path, name: str, values: Any) -> HeldTensor:
    if not isinstance(values, np.ndarray):
        raise CheckpointError(f"{path}: {name} is a {type(values).__name__}, not an array")
    dtype = "bfloat16" if values.dtype == np.uint16 else _NAMES.get(values.dtype.str)
    if dtype is None:
        raise CheckpointError(f"{path}: {name} has the dtype {values.dtype}; supported: {', '.join(STORAGE)}")
    return HeldTensor(values.shape, dtype, path, 0, values=values)
