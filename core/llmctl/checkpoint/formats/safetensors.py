"""The safetensors format (https://huggingface.co/docs/safetensors): reading headers, writing files tensor by tensor.

A file is an eight-byte length, a JSON header and the data. The package ``safetensors`` does not read bfloat16 into numpy and
writes only whole models from memory, so both are done here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from llmctl.checkpoint.formats.dtypes import STORAGE
from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.errors import CheckpointError

_CODES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "U16": "bfloat16",
}
"""Codes in headers; paddle hands bfloat16 to numpy as 16-bit integers, so PaddleNLP writes U16 and reads no BF16."""
_CODE_OF = {name: code for code, name in _CODES.items() if code != "U16"}
FORMATS = {"pt": _CODE_OF, "np": {**_CODE_OF, "bfloat16": "U16"}}
"""``format`` in the metadata: of torch (transformers), and of numpy (PaddleNLP)."""
_MAX_HEADER = 100_000_000


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Reads the header: name -> tensor, in the order of the data.

    Raises:
        CheckpointError: The file is truncated or too long, or its header is not valid.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise CheckpointError(f"{path} is truncated inside its header, or is not a safetensors file ({size} bytes)")
        text = stream.read(length)
    try:
        header = _load(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not valid: {error}") from None
    entries = {name: _parse(path, name, entry) for name, entry in header.items()}
    return _tensor_infos(path, entries, 8 + length, size)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write: shape, data type, and a function that writes its bytes to a stream."""

    shape: tuple[int, ...]
    dtype: str
    write: Callable[[BinaryIO], None]

    @property
    def nbytes(self) -> int:
        """Size of its data in bytes."""
        return prod(self.shape) * STORAGE[self.dtype].itemsize


def write_file(
    path: Path,
    tensors: Mapping[str, PlannedTensor],
    progress: Callable[[int], None] | None = None,
    form: str = "pt",
) -> None:
    """Writes a file tensor by tensor and syncs it to disk; wide data types come first, for alignment.

    Args:
        path: The file.
        tensors: Name -> tensor.
        progress: Called with the size in bytes of each tensor that was written.
        form: ``format`` in the metadata, a key of ``FORMATS``.
    """
    order = sorted(tensors, key=lambda name: -STORAGE[tensors[name].dtype].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": form}}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        code = FORMATS[form][tensors[name].dtype]
        header[name] = {"dtype": code, "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensors[name].write(stream)
            if progress:
                progress(tensors[name].nbytes)
        stream.flush()
        os.fsync(stream.fileno())
        if stream.tell() != 8 + len(text) + end:
            raise AssertionError(f"{path}: wrote {stream.tell()} bytes, planned {8 + len(text) + end}")


def _load(text: bytes) -> dict[str, Any]:
    """Parses a header without its metadata; what is accepted here the package ``safetensors`` accepts too."""
    header = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_constant, parse_int=_integer)
    if not isinstance(header, dict):
        raise ValueError("it is not an object")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise ValueError("__metadata__ must be an object of texts")
    return header


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int | float:
    """The number as the reference parser reads it: -0 and what does not fit into 64 bits are not integers."""
    number = int(text)
    return float(min(number, 1 << 64)) if text == "-0" or number >= 1 << 64 else number


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{name!r} is in it twice")
        for part in (name, value):
            if isinstance(part, str):
                part.encode()
        result[name] = value
    return result


def _parse(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{path}: the header's entry for {name} is not valid: {entry!r}") from None
    if (
        not isinstance(code, str)
        or not isinstance(shape, list)
        or not all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    ):
        raise CheckpointError(f"{path}: the header's entry for {name} is not valid: {entry!r}")
    if code not in _CODES:
        raise CheckpointError(f"{path}: {name} has the dtype {code!r}; supported: {', '.join(_CODES)}")
    need = prod(shape) * STORAGE[_CODES[code]].itemsize
    if end - begin != need:
        raise CheckpointError(f"{path}: {name} needs {need} bytes, its offsets give {end - begin}")
    return _CODES[code], tuple(shape), begin, end


def _tensor_infos(
    path: Path, entries: Mapping[str, tuple[str, tuple[int, ...], int, int]], base: int, size: int
) -> dict[str, TensorInfo]:
    infos, expected = {}, 0
    for name, (dtype, shape, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != expected:
            fault = "overlaps the tensor before it" if begin < expected else "leaves a gap before it"
            raise CheckpointError(f"{path}: {name} begins at byte {begin} of the data and {fault}, at {expected}")
        infos[name] = TensorInfo(shape, dtype, path, base + begin)
        expected = end
    if base + expected > size:
        missing = base + expected - size
        raise CheckpointError(f"{path} is truncated: its header describes {missing} bytes more than the file has")
    if base + expected < size:
        raise CheckpointError(f"{path} has {size - base - expected} bytes after its last tensor; it is damaged")
    return infos
