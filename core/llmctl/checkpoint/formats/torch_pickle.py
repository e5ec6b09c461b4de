"""State dicts in torch's pickles, described without running anything: every global is an inert value or a reader here.

The result describes tensors (which storage, offset, shape, strides); the bytes are the matter of ``torch_file.py``.
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
    """Stands for ``torch.FloatStorage`` and its like."""

    dtype: str


class Storage(NamedTuple):
    """A storage that a file holds: dtype, key and number of elements."""

    dtype: str
    key: str
    size: int


class PickledTensor(NamedTuple):
    """Stands for a tensor: a view of a storage, offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> PickledTensor:
    """``torch._utils._rebuild_tensor_v2``. Metadata say that the stored bytes are not the tensor's values."""
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
        raise ValueError(f"a tensor of shape {shape} has settings that are not read{named}; save plain tensors")
    return PickledTensor(storage, offset, shape, strides)


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> PickledTensor:
    """``torch._utils._rebuild_parameter``."""
    if not isinstance(data, PickledTensor) or type(requires_grad) is not bool or not _empty(hooks):
        raise ValueError("a parameter has another form than torch writes")
    return data


def _size(values: Any) -> tuple[Any, ...]:
    """``torch.Size``."""
    if type(values) not in (tuple, list):
        raise ValueError("a torch.Size is not made of numbers")
    return tuple(values)


def _ordered_dict(*pairs: Any) -> dict[Any, Any]:
    """``collections.OrderedDict``; its entries follow."""
    if pairs:
        raise ValueError("an OrderedDict is made of other objects")
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
    """The storage that a persistent id names."""
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
        raise ValueError("a persistent id is no storage")
    _, kind, key, _, size = pid[:5]
    if not isinstance(kind, StorageType) or type(key) is not str or type(size) is not int or size < 0:
        raise ValueError("a persistent id is no storage")
    return Storage(kind.dtype, key, size)


def unpickle(stream: BinaryIO, path: Path) -> Any:
    """The next pickled object of a stream, with descriptions in place of tensors.

    Raises:
        CheckpointError: The pickle is damaged, or asks for anything but tensors.
    """
    return inert_pickle.load(stream, path, GLOBALS, _storage)


def named_tensors(state: Any, path: Path) -> dict[str, PickledTensor]:
    """The entries of an unpickled state dict.

    Raises:
        CheckpointError: It is not a flat mapping of names to tensors.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict (names with tensors)")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, PickledTensor):
            raise CheckpointError(
                f"{path}: the entry {name if isinstance(name, int) else name[:100]!r} is a {type(value).__name__}, not a tensor; "
                "only plain state dicts are read, not training checkpoints that nest one"
            )
    return state
