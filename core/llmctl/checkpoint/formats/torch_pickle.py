"""State dicts in torch's pickles, read without executing anything: every global is replaced by a value or function here.

The result describes tensors by storage, offset, shape and strides; ``torch_bin`` locates the bytes of storages.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llmctl.checkpoint.formats import inert_pickle
from llmctl.errors import CheckpointError

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


class StorageType(NamedTuple):
    """Replaces ``torch.FloatStorage`` and similar classes."""

    dtype: str


class Storage(NamedTuple):
    """A storage in the file: data type, key and number of elements."""

    dtype: str
    key: str
    size: int


class PickledTensor(NamedTuple):
    """Replaces a tensor: a view of a storage, with offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> PickledTensor:
    """Replaces ``torch._utils._rebuild_tensor_v2``; with metadata, the stored bytes would not be the values."""
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides) or len(shape) > 64:
        raise ValueError("a tensor's shape or strides are not valid")
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("a tensor's storage, offset, shape or strides are not valid")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {storage.size} elements")
    if type(requires_grad) is not bool or not _empty(hooks) or not _empty(metadata):
        named = f": {', '.join(map(str, list(metadata)[:3]))}" if isinstance(metadata, dict) else ""
        raise ValueError(f"a tensor of shape {shape} has unsupported attributes{named}; save plain tensors")
    return PickledTensor(storage, offset, shape, strides)


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> PickledTensor:
    """Replaces ``torch._utils._rebuild_parameter``."""
    if not isinstance(data, PickledTensor) or type(requires_grad) is not bool or not _empty(hooks):
        raise ValueError("a parameter is not as torch writes it")
    return data


def _size(values: Any) -> tuple[Any, ...]:
    """Replaces ``torch.Size``."""
    if type(values) not in (tuple, list):
        raise ValueError("a torch.Size is not made of numbers")
    return tuple(values)


def _ordered_dict(*pairs: Any) -> dict[Any, Any]:
    """Replaces ``collections.OrderedDict``; its entries follow."""
    if pairs:
        raise ValueError("an OrderedDict is built from other objects")
    return {}


def _empty(value: Any) -> bool:
    return value is None or (type(value) in (dict, tuple) and not value)


GLOBALS: Mapping[str, Any] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    **{f"torch.{name}": StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": f"torch.{name}" for name in _DTYPES},
}


def _storage(pid: Any) -> Storage:
    """The storage of a persistent id."""
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
        raise ValueError("a persistent id is not a storage")
    _, kind, key, _, size = pid[:5]
    if not isinstance(kind, StorageType) or type(key) is not str or type(size) is not int or size < 0:
        raise ValueError("a persistent id is not a storage")
    return Storage(kind.dtype, key, size)


def unpickle(stream: BinaryIO, path: Path) -> Any:
    """Reads the next pickled object of a stream, with ``PickledTensor`` for tensors.

    Raises:
        CheckpointError: The pickle is damaged, or holds other objects than tensors.
    """
    return inert_pickle.load(stream, path, GLOBALS, _storage)


def named_tensors(state: Any, path: Path) -> dict[str, PickledTensor]:
    """The tensors of an unpickled state dict.

    Raises:
        CheckpointError: It is not a flat dict of tensors.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, PickledTensor):
            raise CheckpointError(
                f"{path}: the entry {name if isinstance(name, int) else name[:100]!r} is a {type(value).__name__}, not a tensor; "
                "only plain state dicts are supported, not training checkpoints that contain one"
            )
    return state
