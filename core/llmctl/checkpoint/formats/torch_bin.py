"""torch's ``.bin`` files: positions of all tensors, in the zip format (since torch 1.6) and the legacy one.

``torch_pickle`` reads the pickle inside, without executing anything of it.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from llmctl.checkpoint.formats.dtypes import STORAGE
from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.checkpoint.formats.torch_pickle import PickledTensor, Storage, named_tensors, unpickle
from llmctl.errors import CheckpointError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b"\x80\x02\x8a\n" + _LEGACY_MAGIC.to_bytes(10, "little")
_LOCAL_HEADER = 30
_COMPRESSED = "the record {} is compressed, which is not supported and not what torch writes; save the file again"


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Reads the header: name -> tensor.

    Raises:
        CheckpointError: The file is truncated, damaged, has another format, or holds other objects than tensors.
    """
    with open(path, "rb") as stream:
        start = stream.read(len(_LEGACY_START))
        stream.seek(0)
        if start.startswith(b"PK"):
            return _read_zip(path, stream)
        if start == _LEGACY_START:
            return _read_legacy(path, stream)
    raise CheckpointError(
        f"{path} is not a torch checkpoint: it starts with {start[:8]!r}, which is neither zip nor torch's pickle"
    )


def _read_zip(path: Path, stream: BinaryIO) -> dict[str, TensorInfo]:
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, struct.error) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from None
    with archive:
        records = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in records if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise CheckpointError(f"{path} is a zip with {len(pickles)} records data.pkl; a torch checkpoint has one")
        folder = pickles[0].removesuffix("data.pkl")
        order = _record(archive, path, records.get(folder + "byteorder"), default=b"little")
        state = unpickle(io.BytesIO(_record(archive, path, records[pickles[0]])), path)
        found: dict[str, tuple[int, int]] = {}

        def locate(storage: Storage) -> int:
            name = f"{folder}data/{storage.key}"
            if name not in found:
                if name not in records:
                    raise CheckpointError(f"{path} is incomplete: it has no record {name}")
                found[name] = _data_range(path, stream, records[name])
            offset, size = found[name]
            _check_size(path, name, storage, size)
            return offset

        return _tensor_infos(path, named_tensors(state, path), locate, big_endian=order.strip() == b"big")


def _record(archive: zipfile.ZipFile, path: Path, info: zipfile.ZipInfo | None, default: bytes = b"") -> bytes:
    if info is None:
        return default
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > path.stat().st_size:
        raise CheckpointError(f"{path}: {_COMPRESSED.format(info.filename)}")
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the record {info.filename} is damaged: {error}") from None


def _data_range(path: Path, stream: BinaryIO, info: zipfile.ZipInfo) -> tuple[int, int]:
    if info.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{path}: {_COMPRESSED.format(info.filename)}")
    stream.seek(info.header_offset)
    header = stream.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{path}: the record {info.filename} has a damaged header")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = info.header_offset + _LOCAL_HEADER + names
    if offset + info.file_size > path.stat().st_size:
        raise CheckpointError(f"{path} is truncated inside the record {info.filename}")
    return offset, info.file_size


def check_crc(files: Iterable[Path]) -> None:
    """Checks the CRC-32 of every record in torch's zip files; skips other files.

    A stored CRC of 0 is not checked: torch writes it if it is set not to compute checksums.

    Raises:
        CheckpointError: A record is damaged; the message names the first one.
    """
    for path in sorted(files):
        with open(path, "rb") as stream:
            if stream.read(2) != b"PK":
                continue
            stream.seek(0)
            with zipfile.ZipFile(stream) as archive:
                for info in archive.infolist():
                    if info.CRC and _crc(path, stream, info) != info.CRC:
                        raise CheckpointError(
                            f"{path} is damaged: the record {info.filename} has another CRC-32 than the archive states; "
                            "get the file again"
                        )


def _crc(path: Path, stream: BinaryIO, info: zipfile.ZipInfo) -> int:
    offset, left = _data_range(path, stream, info)
    stream.seek(offset)
    found = 0
    while left and (block := stream.read(min(left, 4 << 20))):
        found, left = zlib.crc32(block, found), left - len(block)
    return found


def _read_legacy(path: Path, stream: BinaryIO) -> dict[str, TensorInfo]:
    magic, protocol, system, state, keys = (unpickle(stream, path) for _ in range(5))
    if magic != _LEGACY_MAGIC or protocol != 1001 or not isinstance(system, dict) or not isinstance(keys, list):
        raise CheckpointError(f"{path} is damaged: its preamble is not that of a torch checkpoint")
    tensors = named_tensors(state, path)
    sizes = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    big_endian = system.get("little_endian") is False
    offsets = _legacy_offsets(path, stream, keys, sizes, big_endian)

    def locate(storage: Storage) -> int:
        if storage.key not in offsets:
            raise CheckpointError(f"{path} is incomplete: it has no storage {storage.key!r}")
        _check_size(path, storage.key, storage, sizes[storage.key].size * STORAGE[sizes[storage.key].dtype].itemsize)
        return offsets[storage.key]

    return _tensor_infos(path, tensors, locate, big_endian)


def _legacy_offsets(
    path: Path, stream: BinaryIO, keys: Iterable[str], sizes: dict[str, Storage], big_endian: bool
) -> dict[str, int]:
    offsets, file_size = {}, path.stat().st_size
    for key in keys:
        if key not in sizes:
            raise CheckpointError(f"{path} is damaged: no tensor uses its storage {key!r}")
        count = int.from_bytes(stream.read(8), "big" if big_endian else "little")
        offsets[key] = stream.tell()
        end = offsets[key] + count * STORAGE[sizes[key].dtype].itemsize
        if count != sizes[key].size or end > file_size:
            raise CheckpointError(f"{path} is truncated or damaged at its storage {key!r}")
        stream.seek(end)
    return offsets


def _check_size(path: Path, name: str, storage: Storage, size: int) -> None:
    need = storage.size * STORAGE[storage.dtype].itemsize
    if need > size:
        raise CheckpointError(f"{path}: {name} has {size} bytes, its tensors need {need}")


def _tensor_infos(
    path: Path, tensors: dict[str, PickledTensor], locate: Callable[[Storage], int], big_endian: bool
) -> dict[str, TensorInfo]:
    infos = {}
    for name, tensor in tensors.items():
        dtype = tensor.storage.dtype
        offset = locate(tensor.storage) + tensor.offset * STORAGE[dtype].itemsize
        strides = None if _contiguous(tensor) else tensor.strides
        infos[name] = TensorInfo(tensor.shape, dtype, path, offset, strides, big_endian)
    return infos


def _contiguous(tensor: PickledTensor) -> bool:
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != step:
            return 0 in tensor.shape
        step *= size
    return True
