"""Paddle's ``.pdparams``: a pickle of names and numpy arrays, read without executing anything of it.

Arrays are described by their offset in the file, as in the other formats; only arrays of pickle protocol 2, which writes
bytes as text, are decoded into memory. ``checkpoint.merge_ranks`` merges the files of tensor-parallel ranks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmctl.checkpoint.formats import inert_pickle
from llmctl.checkpoint.formats.dtypes import BITS_ONLY, STORAGE, cast
from llmctl.checkpoint.formats.inert_pickle import Built, Bytes
from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.errors import CheckpointError

NAME = "model_state.pdparams"
SHARD = re.compile(r"model_state\.tp(\d+)\.pdparams")
_STRUCTURE = "StructuredToParameterName@@"
_KINDS = {f"{dtype.kind}{dtype.itemsize}": name for name, dtype in STORAGE.items() if name not in BITS_ONLY}
_KINDS |= {"u2": "bfloat16", "b1": "bool"}
_MAX_AXES = 32
_PLAIN = (None, None, None, -1, -1, 0)
"""State of a plain numpy dtype after its byte order: no subtype, names, fields, size, alignment or flags."""


@dataclass(frozen=True)
class InMemoryTensor(TensorInfo):
    """A tensor whose values are in memory."""

    values: NDArray[Any] = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    def read(self) -> NDArray[Any]:
        """The values in their data type."""
        return self.values

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


class _DType(Built):
    """Replaces ``numpy.dtype``: kind and size such as f4, and the byte order."""

    __slots__ = ("big_endian", "built", "name")

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if type(code) is not str or align not in (0, False):
            raise ValueError("a dtype is not as numpy writes it")
        self.name, self.big_endian, self.built = code.lstrip("<|=")[:8], code.startswith(">"), False
        self.name = self.name.removeprefix(">")

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 8 or self.built:
            raise ValueError("a dtype is not as numpy writes it")
        version, order, *rest = state
        plain = all(type(value) is type(right) and value == right for value, right in zip(rest, _PLAIN, strict=False))
        if type(version) is not int or type(order) is not str or order not in "<>|=" or len(rest) != 6 or not plain:
            raise ValueError("a dtype is not a plain number type")
        self.big_endian, self.built = order == ">", True


class _Array(Built):
    """Replaces ``numpy.ndarray``; its content is in its state."""

    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(self) -> None:
        self.dtype: _DType | None = None
        self.data: Any = None

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5 or self.dtype is not None:
            raise ValueError("an array is not as numpy writes it")
        _, shape, dtype, fortran, data = state
        if type(shape) is not tuple or len(shape) > _MAX_AXES or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError("the shape of an array is not made of integers")
        if not isinstance(dtype, _DType) or type(fortran) is not bool or not isinstance(data, (Bytes, str)):
            raise ValueError("an array does not have a dtype and bytes; object arrays are not supported")
        self.shape, self.dtype, self.fortran, self.data = shape, dtype, fortran, data


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    """Replaces ``numpy.core.multiarray._reconstruct``: an empty array, whose state follows."""
    if kind != "ndarray" or not isinstance(shape, tuple):
        raise ValueError("an array is not as numpy writes it")
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Replaces ``numpy.core.numeric._frombuffer`` of pickle protocol 5."""
    array = _Array()
    array.build((1, shape, dtype, order == "F", data))
    return array


def _encoded(text: Any, encoding: Any) -> Any:
    """Replaces ``_codecs.encode``: bytes that pickle protocol 2 writes as text."""
    if encoding != "latin1" or not isinstance(text, (Bytes, str)):
        raise ValueError("bytes are not encoded as latin1")
    return text


def _ordered_dict(*pairs: Any) -> dict[Any, Any]:
    if pairs:
        raise ValueError("an OrderedDict is built from other objects")
    return {}


_GLOBALS: Mapping[str, Any] = {
    "numpy.ndarray": "ndarray",
    "numpy.dtype": _DType,
    "_codecs.encode": _encoded,
    "__builtin__.bytes": lambda: "",
    "collections.OrderedDict": _ordered_dict,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Reads the header: name -> tensor; uint16 is read as bfloat16, which paddle stores so.

    Raises:
        CheckpointError: The file is damaged or holds other objects than arrays.
    """
    with open(path, "rb") as stream:
        content = inert_pickle.load(stream, path, _GLOBALS)
        if type(content) is not dict:
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of arrays")
        content.pop(_STRUCTURE, None)
        return {str(name): _info(path, stream, str(name)[:200], array) for name, array in content.items()}


def shards(folder: Path) -> list[Path]:
    """The files of tensor-parallel ranks, in order.

    Raises:
        CheckpointError: The file of a rank is missing.
    """
    found = {int(match[1]): file for file in folder.glob("*.pdparams") if (match := SHARD.fullmatch(file.name))}
    absent = sorted(set(range(max(found, default=-1) + 1)) - set(found))
    if absent:
        raise CheckpointError(f"{folder} has shards of {len(found)} ranks; missing: {', '.join(map(str, absent))}")
    return [found[rank] for rank in sorted(found)]


def _info(path: Path, stream: BinaryIO, name: str, array: Any) -> TensorInfo:
    """The description of an array; decodes it if its bytes are written as text."""
    if not isinstance(array, _Array) or array.dtype is None:
        raise CheckpointError(
            f"{path}: {name} is a {type(array).__name__.strip('_').lower()}, not an array with values"
        )
    dtype = _KINDS.get(array.dtype.name)
    if dtype is None:
        raise CheckpointError(f"{path}: {name} has the dtype {array.dtype.name}; supported: {', '.join(STORAGE)}")
    storage, count = STORAGE[dtype], prod(array.shape)
    data = array.data
    decoded = _decoded(path, stream, name, data) if isinstance(data, str) or data.text else None
    found = data.length if decoded is None else len(decoded)
    if count * storage.itemsize != found:
        raise CheckpointError(
            f"{path}: {name} has {found} bytes, its shape {list(array.shape)} of {dtype} needs {count * storage.itemsize}"
        )
    strides = _fortran_strides(array.shape) if array.fortran and len(array.shape) > 1 else None
    if decoded is None:
        return TensorInfo(array.shape, dtype, path, data.offset, strides, array.dtype.big_endian)
    stored = np.frombuffer(decoded, storage.newbyteorder(">") if array.dtype.big_endian else storage).astype(storage)
    values = stored.reshape(array.shape, order="F" if array.fortran else "C")
    return InMemoryTensor(array.shape, dtype, path, 0, values=values)


def _decoded(path: Path, stream: BinaryIO, name: str, data: Bytes | str) -> bytes:
    try:
        if isinstance(data, Bytes):
            stream.seek(data.offset)
            data = stream.read(data.length).decode("utf-8")
        return data.encode("latin1")
    except UnicodeError:
        raise CheckpointError(f"{path}: the bytes of {name} are not as pickle protocol 2 writes them") from None


def _fortran_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for size in shape[:-1]:
        strides.append(strides[-1] * max(size, 1))
    return tuple(strides)
