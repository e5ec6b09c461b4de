"""Reads and writes GGUF files, the format of llama.cpp: metadata, and tensors in blocks. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

What tensors hold is in ``quant.formats.gguf_blocks``, what names and metadata mean in ``checkpoint.gguf``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmctl.errors import CheckpointError
from llmctl.quant.formats.gguf_blocks import TYPES, UNREAD, BlockType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
MOST_AXES = 4
LARGEST = 1 << 40
"""Of an axis; larger ones are damage."""

SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "|b1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""Number of a type of metadata -> numpy's."""

STRING, ARRAY, BOOL, UINT32, INT32, FLOAT32 = 8, 9, 7, 4, 5, 6


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        shape: As numpy has it: the axis that is contiguous is the last.
        type: How its values are stored.
        file: The file.
        offset: Byte offset of its first block.
    """

    shape: tuple[int, ...]
    type: BlockType
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of all its blocks."""
        return prod(self.shape) // self.type.size * self.type.nbytes


@dataclass(frozen=True)
class GgufFile:
    """A file whose header was read, or all the parts of a model.

    Attributes:
        path: The file, or the first part.
        metadata: Key -> value; arrays of numbers are numpy's, arrays of strings are lists.
        tensors: Name -> tensor.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]


class _Header:
    """The bytes of a header, read from its begin to its end."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream
        self._size = path.stat().st_size

    @property
    def position(self) -> int:
        return self._stream.tell()

    def bytes(self, count: int) -> bytes:
        if count > self._size - self._stream.tell():
            raise CheckpointError(f"{self._path} ends within its header; it is truncated, or no GGUF file")
        return self._stream.read(count)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.bytes(struct.calcsize(form)))[0]

    def text(self) -> str:
        raw = self.bytes(self.number("<Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self._path} has a text in its header that is not UTF-8: {raw[:40]!r}") from None

    def value(self, kind: int, nested: bool = False) -> Any:
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind])
            value = np.frombuffer(self.bytes(dtype.itemsize), dtype)[0]
            # The shortest number that is this one in float32: what was meant.
            return float(str(value)) if dtype == np.float32 else value.item()
        if kind == STRING:
            return self.text()
        if kind != ARRAY or nested:
            raise CheckpointError(
                f"{self._path} has metadata of type {kind}, which GGUF does not have here; it is damaged"
            )
        of, count = self.number("<I"), self.number("<Q")
        if of in SCALARS:
            dtype = np.dtype(SCALARS[of])
            return np.frombuffer(self.bytes(count * dtype.itemsize), dtype)
        return [self.value(of, True) for _ in range(count)]


def read(path: Path) -> GgufFile:
    """Reads the header of a file, and checks that its tensors are within the file.

    Raises:
        CheckpointError: The file is no GGUF file, of another version, truncated or damaged, or has tensors of a type that is not read.
    """
    try:
        with open(path, "rb") as stream:
            return _read(path, _Header(path, stream))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def _read(path: Path, header: _Header) -> GgufFile:
    if header.bytes(4) != MAGIC:
        raise CheckpointError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}")
    version = header.number("<I")
    if version not in VERSIONS:
        other = " of a big-endian machine" if version in (v << 24 for v in VERSIONS) else f" of version {version}"
        raise CheckpointError(
            f"{path} is a GGUF file{other}; versions {' and '.join(map(str, VERSIONS))} in little endian are read"
        )
    tensor_count, key_count = header.number("<Q"), header.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key, kind = header.text(), header.number("<I")
        if key in metadata:
            raise CheckpointError(f"{path} has the metadata {key} twice; it is damaged")
        metadata[key] = header.value(kind)
    described = [_described(path, header) for _ in range(tensor_count)]
    alignment = metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise CheckpointError(f"{path}: {ALIGNMENT}={alignment!r} is no number above 0")
    begin = -(-header.position // alignment) * alignment
    size, tensors = path.stat().st_size, {}
    for name, shape, kind, offset in described:
        if name in tensors:
            raise CheckpointError(f"{path} has the tensor {name} twice; it is damaged")
        tensors[name] = found = Stored(shape, kind, path, begin + offset)
        if found.offset + found.nbytes > size:
            raise CheckpointError(
                f"{path} is truncated: the tensor {name} ends at byte {found.offset + found.nbytes} of {size}; copy the file again"
            )
    return GgufFile(path, metadata, tensors)


def _described(path: Path, header: _Header) -> tuple[str, tuple[int, ...], BlockType, int]:
    """Name, shape, type and offset after the header."""
    name, axes = header.text(), header.number("<I")
    if axes > MOST_AXES:
        raise CheckpointError(f"{path}: the tensor {name} has {axes} axes, GGUF has up to {MOST_AXES}; it is damaged")
    shape = tuple(header.number("<Q") for _ in range(axes))[::-1] or (1,)
    number, offset = header.number("<I"), header.number("<Q")
    if number not in TYPES:
        raise CheckpointError(
            f"{path}: the tensor {name} is of type {UNREAD.get(number, number)}, which is not read; read are "
            f"{', '.join(t.name for t in TYPES.values())}. Take the model in one of these quantizations, or make it of its floats: "
            "llama-quantize MODEL-F16.gguf MODEL-Q4_K_M.gguf Q4_K_M"
        )
    kind = TYPES[number]
    if not all(0 < axis < LARGEST for axis in shape) or shape[-1] % kind.size:
        raise CheckpointError(
            f"{path}: the tensor {name} of type {kind.name} is {list(shape)}, whose rows are no whole blocks of {kind.size}"
        )
    return name, shape, kind, offset


@dataclass(frozen=True)
class Planned:
    """A tensor to write: its shape, type, and a function that gives its blocks as bytes."""

    shape: tuple[int, ...]
    type: BlockType
    blocks: Callable[[], NDArray[np.uint8]]

    @property
    def nbytes(self) -> int:
        """Bytes of all its blocks."""
        return prod(self.shape) // self.type.size * self.type.nbytes


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Planned]) -> None:
    """Writes a file of version 3.

    Args:
        path: The file.
        metadata: Key -> bool, int (as uint32), float (as float32), str, list of strings, or an array of numbers.
        tensors: In the order of the file; their blocks are asked for one by one.

    Raises:
        OSError: The file cannot be written.
    """
    numbers = {kind: number for number, kind in TYPES.items()}
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _value(value)]
    offset = 0
    for name, tensor in tensors.items():
        axes = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1])
        parts += [_text(name), axes, struct.pack("<IQ", numbers[tensor.type], offset)]
        offset += -(-tensor.nbytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
    with open(path, "wb") as stream:
        stream.write(b"".join(parts))
        for tensor in tensors.values():
            stream.write(b"\0" * (-stream.tell() % DEFAULT_ALIGNMENT))
            stream.write(np.ascontiguousarray(tensor.blocks()).data)  # tofile does not say why it fails


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, np.ndarray):
        kind = next(number for number, dtype in SCALARS.items() if np.dtype(dtype) == value.dtype)
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + value.tobytes()
    return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))
