"""Position of a tensor in a file, and reading its rows chunk by chunk; all file formats describe tensors this way."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from llmctl.checkpoint.formats.dtypes import STORAGE, cast
from llmctl.errors import CheckpointError
from llmctl.quant.formats.codes import Codes

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file.

    Attributes:
        shape: Its stored shape.
        dtype: A name in ``dtypes.STORAGE``.
        file: The file.
        offset: Byte offset of its first element.
        strides: Strides in elements; None = contiguous, C order.
        big_endian: Whether the file was written on a big-endian machine.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int
    strides: tuple[int, ...] | None = None
    big_endian: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.size * STORAGE[self.dtype].itemsize

    def read(self) -> NDArray[Any]:
        """Reads all values in their stored data type.

        Raises:
            CheckpointError: The file is truncated.
        """
        out = np.empty(self.shape, STORAGE[self.dtype])
        self.read_into(out, self.dtype)
        return out

    def read_into(self, out: NDArray[Any], dtype: str, start: int = 0) -> None:
        """Fills ``out`` (any strides, storage type of ``dtype``) with rows from ``start`` on, cast chunk by chunk.

        Raises:
            CheckpointError: The file is truncated, or a value does not fit into ``dtype``.
        """
        if not out.size:
            return
        rows = out if out.ndim else out.reshape(1)
        row_size = prod(rows.shape[1:])
        step = max(1, CHUNK_BYTES // (row_size * STORAGE[self.dtype].itemsize))
        if self.strides and self.strides[0] < max(self.strides):
            step = len(rows)  # a few rows of a transposed tensor span nearly all of it
        with open(self.file, "rb") as stream:
            for low in range(0, len(rows), step):
                high = min(low + step, len(rows))
                values = self._read_rows(stream, start + low, start + high, rows.shape[1:])
                try:
                    rows[low:high] = cast(values, self.dtype, dtype)
                except ValueError as error:
                    raise CheckpointError(f"{self.file}: {error}") from None

    def _read_rows(self, stream: BinaryIO, low: int, high: int, row_shape: tuple[int, ...]) -> NDArray[Any]:
        storage = STORAGE[self.dtype]
        raw = storage.newbyteorder(">") if self.big_endian else storage
        shape = (high - low, *row_shape)
        if self.strides is None:
            stream.seek(self.offset + low * prod(row_shape) * raw.itemsize)
            values = self._read(stream, raw, prod(shape)).reshape(shape)
        else:
            steps = self.strides if self.shape else (1,)
            stream.seek(self.offset + low * steps[0] * raw.itemsize)
            span = self._read(stream, raw, 1 + sum((n - 1) * step for n, step in zip(shape, steps, strict=True)))
            strides = tuple(step * raw.itemsize for step in steps)
            values = np.lib.stride_tricks.as_strided(span, shape, strides, writeable=False)
        return values.astype(storage, copy=False)

    def _read(self, stream: BinaryIO, raw: np.dtype[Any], count: int) -> NDArray[Any]:
        values = np.fromfile(stream, raw, count)
        if len(values) != count:
            raise CheckpointError(f"{self.file} ends inside a tensor; the file is truncated or was changed meanwhile")
        return values


class CodedTensor(TensorInfo):
    """A weight that is stored as codes; its values are those of the float32 tensor that it stands for.

    Attributes:
        outputs_first: Whether its shape is [out, in]; else [in, out]. Codes are [out, in] always.
    """

    outputs_first: ClassVar[bool] = True

    def codes(self) -> Codes | None:
        """The codes, scales and zero points; None = it is stored as floats after all, or in codes of another form.

        Raises:
            CheckpointError: What is stored contradicts itself, or a file is truncated.
        """
        raise NotImplementedError
