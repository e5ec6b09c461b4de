"""Unpickling of torch files that runs nothing: every global becomes an inert stand-in or is refused by name.

The result describes tensors (which storage, offset, shape, strides); the bytes are the matter of ``torch_file.py``.
A stand-in is a tuple or an object without attributes, so that no opcode of a pickle can call or change anything else.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

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
_DTYPES = {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}


class StorageType(NamedTuple):
    """Stand-in for ``torch.FloatStorage`` and its like."""

    dtype: str


class Storage(NamedTuple):
    """A storage that a file holds: dtype, key and number of elements."""

    dtype: str
    key: str
    size: int


class PickledTensor(NamedTuple):
    """Stand-in for a tensor: a view of a storage, offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> PickledTensor:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError("a tensor's storage, offset, shape or strides are not valid")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if 0 not in shape and last >= storage.size:
            raise ValueError(f"a tensor of shape {tuple(shape)} reaches beyond its storage of {storage.size} elements")
        return PickledTensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, data: Any, *_: Any) -> Any:
        return data


class _MakeTuple:
    __slots__ = ()

    def __call__(self, values: Any = ()) -> tuple[Any, ...]:
        return tuple(values)


def _stand_in(module: str, name: str) -> Any:
    if (module, name) == ("collections", "OrderedDict"):
        return OrderedDict
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
        return _RebuildTensor()
    if (module, name) == ("torch._utils", "_rebuild_parameter"):
        return _RebuildParameter()
    if (module, name) == ("torch", "Size"):
        return _MakeTuple()
    if module == "torch" and name in _STORAGES:
        return StorageType(_STORAGES[name])
    if module == "torch" and name in _DTYPES:
        return f"torch.{name}"
    return None


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickler of state dicts; see the module's docstring."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        super().__init__(stream, encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a global.

        Raises:
            CheckpointError: The global is none that a state dict needs.
        """
        found = _stand_in(module, name)
        if found is None:
            raise CheckpointError(
                f"{self._path} is refused: it asks for {module}.{name}, which holds no weights and could run code. "
                "Nothing of it was run. Use a safetensors version of the checkpoint."
            )
        return found

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a persistent id names.

        Raises:
            ValueError: The id has another form.
        """
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
            raise ValueError(f"the storage {pid!r} has an unknown form")
        _, kind, key, _, size = pid[:5]
        if not isinstance(kind, StorageType) or not isinstance(key, str) or type(size) is not int or size < 0:
            raise ValueError(f"the storage {pid!r} has an unknown form")
        return Storage(kind.dtype, key, size)


def unpickle(stream: BinaryIO, path: Path) -> Any:
    """The next pickled object of a stream, with stand-ins.

    Raises:
        CheckpointError: The pickle is damaged, or asks for anything but tensors.
    """
    try:
        return RestrictedUnpickler(stream, path).load()
    except CheckpointError:
        raise
    except MemoryError:
        raise CheckpointError(f"{path}: its pickle is damaged or asks for more memory than there is") from None
    except Exception as error:
        raise CheckpointError(f"{path}: its pickle cannot be read: {type(error).__name__}: {error}") from None


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
                f"{path}: the entry {name!r} is a {type(value).__name__}, not a tensor; "
                "only plain state dicts are read, not training checkpoints that nest one"
            )
    return state
