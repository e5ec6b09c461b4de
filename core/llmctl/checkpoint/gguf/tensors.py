"""Tensors of a GGUF file under the names of Hugging Face's checkpoints: values, and codes as they are.

Shape suffixes: O outputs, I inputs of a linear, G groups of 32 inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from llmctl.card.dims import Dims
from llmctl.card.family import Family, Tensor
from llmctl.checkpoint.formats.dtypes import cast
from llmctl.checkpoint.formats.gguf import GgufFile, Stored
from llmctl.checkpoint.formats.tensor_info import CHUNK_BYTES, CodedTensor, TensorInfo
from llmctl.checkpoint.gguf.names import FREQUENCIES, gguf_name
from llmctl.errors import CheckpointError
from llmctl.quant.formats.codes import Codes, consecutive, nearest
from llmctl.quant.formats.gguf_blocks import GROUP, TYPES, Blocks, BlockType

NEIGHBOURS, PACKED = ("qkv.0", "qkv.1"), "qkv"
"""Slots whose outputs may be in another order, in their weights and biases."""


@dataclass(frozen=True)
class GgufTensor(CodedTensor):
    """Rows of blocks, one for each output, in the order of the file or that of Hugging Face's.

    Attributes:
        kind: How a row is stored.
        heads: Heads whose rows are in another order; 0 = none.
        by_head: Whether these are queries, keys and values; else a head's rows that RoPE rotates together are neighbours.
    """

    kind: BlockType = TYPES[0]
    heads: int = 0
    by_head: bool = False

    def codes(self) -> Codes | None:
        """The codes of 32 inputs that share a scale: those of the file, or of types with smaller groups the nearest of 8 bits.

        None = it is stored as floats.
        """
        if self.kind.decode is None:
            return None
        blocks = self._blocks(np.arange(self.shape[0]))
        outputs, inputs = self.shape
        if blocks.scales_BG.shape[1] * GROUP > self.kind.size:
            return nearest(blocks.values().reshape(outputs, inputs), GROUP)
        codes = blocks.codes_BN.reshape(outputs, -1, GROUP)
        scales = blocks.scales_BG.reshape(outputs, -1)
        zeros = np.zeros_like(scales)
        if blocks.shifts_BG is not None:
            codes, scales, zeros = _with_zeros(codes, scales, blocks.shifts_BG.reshape(outputs, -1))
        bits = 4 if codes.min() >= -8 and codes.max() <= 7 else 8
        return Codes(bits, codes.reshape(outputs, inputs), scales, zeros, consecutive(inputs, GROUP))

    def read_into(self, out: NDArray[Any], dtype: str, start: int = 0) -> None:
        """As ``TensorInfo.read_into``."""
        width = prod(self.shape[1:])
        step = max(1, CHUNK_BYTES // (4 * width))
        for low in range(0, len(out), step):
            rows = np.arange(start + low, start + min(low + step, len(out)))
            out[low : low + len(rows)] = self.values(rows, dtype)

    def values(self, rows: NDArray[np.int64], dtype: str) -> NDArray[Any]:
        """Rows in a data type; raises ``CheckpointError`` where a value does not fit into it."""
        shape = (len(rows), *self.shape[1:])
        if self.kind.decode is not None:
            values: NDArray[Any] = self._blocks(rows).values().reshape(shape)
        else:
            values = self._raw(rows).view({"float32": "<f4", "float16": "<f2"}.get(self.dtype, "<u2")).reshape(shape)
        try:
            return cast(values, self.dtype, dtype)
        except ValueError as error:
            raise CheckpointError(f"{self.file}: {error}") from None

    def _blocks(self, rows: NDArray[np.int64]) -> Blocks:
        assert self.kind.decode is not None, "only codes have blocks"
        return self.kind.decode(self._raw(rows).reshape(-1, self.kind.nbytes))

    def _raw(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The bytes of rows [rows, bytes]."""
        if self.heads and self.by_head:
            width = self.shape[0] // self.heads // 3
            head, within = np.divmod(rows, 3 * width)
            part, within = np.divmod(within, width)
            rows = (part * self.heads + head) * width + within
        elif self.heads:
            width = self.shape[0] // self.heads
            head, within = np.divmod(rows, width)
            half, pair = np.divmod(within, width // 2)
            rows = head * width + 2 * pair + half
        row_bytes = prod(self.shape[1:]) // self.kind.size * self.kind.nbytes
        size = self.shape[0] * row_bytes
        try:
            mapped = np.memmap(self.file, np.uint8, "r", self.offset, (size,))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.file} cannot be read, or was changed: {error}") from None
        return np.ascontiguousarray(mapped.reshape(self.shape[0], row_bytes)[rows])


@dataclass(frozen=True)
class Turned(CodedTensor):
    """A weight that Hugging Face's files hold as [in, out], and GGUF as rows of outputs.

    Attributes:
        rows: The weight as GGUF holds it, [out, in].
    """

    outputs_first: ClassVar[bool] = False
    rows: GgufTensor = field(default_factory=lambda: GgufTensor((), "", Path(), 0))

    def codes(self) -> Codes | None:
        """As ``GgufTensor.codes``."""
        return self.rows.codes()

    def read_into(self, out: NDArray[Any], dtype: str, start: int = 0) -> None:
        """As ``TensorInfo.read_into``; all outputs are decoded, whatever the inputs."""
        inputs, outputs = self.shape
        step = max(1, CHUNK_BYTES // (4 * inputs))
        for low in range(0, outputs, step):
            rows = np.arange(low, min(low + step, outputs))
            out[:, low : low + len(rows)] = self.rows.values(rows, dtype)[:, start : start + len(out)].T


@dataclass(frozen=True)
class Joined(CodedTensor):
    """A packed projection of Hugging Face's, whose parts are tensors of their own in GGUF.

    Attributes:
        parts: Of its outputs, in their order.
    """

    parts: tuple[TensorInfo, ...] = ()

    def codes(self) -> Codes | None:
        """The codes of all parts, which may have different bits; None = a part is stored as floats."""
        coded = (part.codes() for part in self.parts if isinstance(part, CodedTensor))
        found = [codes for codes in coded if codes is not None]
        if len(found) < len(self.parts):
            return None
        codes_OI, scales_OG, zeros_OG = (
            np.concatenate([getattr(codes, name) for codes in found]) for name in ("codes_OI", "scales_OG", "zeros_OG")
        )
        return replace(
            found[0], bits=max(codes.bits for codes in found), codes_OI=codes_OI, scales_OG=scales_OG, zeros_OG=zeros_OG
        )

    def read_into(self, out: NDArray[Any], dtype: str, start: int = 0) -> None:
        """As ``TensorInfo.read_into``."""
        first = 0
        for part in self.parts:
            low, high = max(start, first), min(start + len(out), first + part.shape[0])
            if low < high:
                part.read_into(out[low - start : high - start], dtype, low - first)
            first += part.shape[0]


def named_tensors(file: GgufFile, card: Family, dims: Dims) -> dict[str, TensorInfo]:
    """The tensors of a file by their names in Hugging Face's checkpoints.

    Raises:
        CheckpointError: A tensor is missing or has another shape, or there is one more.
        UnsupportedError: The family has a tensor that GGUF has no place for.
    """
    found: dict[str, list[TensorInfo]] = {}
    left = set(file.tensors) - {FREQUENCIES}
    for tensor in card.expand(dims):
        name = gguf_name(tensor, card)
        stored = file.tensors.get(name)
        if stored is None:
            raise CheckpointError(f"{file.path} has no tensor {name}, which its metadata asks for; it is incomplete")
        left.discard(name)
        found.setdefault(tensor.torch_name, []).append(_info(name, stored, tensor, card, dims))
    if left:
        raise CheckpointError(
            f"{file.path} has {len(left)} tensors that the family {card.name} does not have, such as {sorted(left)[0]}"
        )
    return {name: _joined(parts) for name, parts in found.items()}


def _info(name: str, stored: Stored, tensor: Tensor, card: Family, dims: Dims) -> TensorInfo:
    turned = len(tensor.shape) == 2 and not tensor.transpose and tensor.kind != "embed"
    shape = tensor.shape[::-1] if tensor.transpose or turned else tensor.shape
    whole, offset = shape, stored.offset
    if tensor.expert is not None:
        whole = (int(dims.experts), *shape)
        offset += tensor.expert * (stored.nbytes // whole[0])
    if stored.shape != whole and stored.shape != whole[-1:] * (whole[0] == 1):
        raise CheckpointError(
            f"{stored.file}: the tensor {name} is {list(stored.shape)}, its metadata asks for {list(whole)}"
        )
    kind, heads = stored.type, heads_of(tensor, card, dims)
    by_head = _slot(tensor) == PACKED
    rows = GgufTensor(shape, kind.dtype, stored.file, offset, kind=kind, heads=heads, by_head=by_head)
    if turned:
        return Turned(tensor.shape, kind.dtype, stored.file, offset, rows=rows)
    return rows if kind.decode is not None or heads else TensorInfo(shape, kind.dtype, stored.file, offset)


def heads_of(tensor: Tensor, card: Family, dims: Dims) -> int:
    """Heads of a tensor whose rows are in another order."""
    slot, gguf = _slot(tensor), card.gguf
    if gguf and ((gguf.neighbours and slot in NEIGHBOURS) or (gguf.by_head and slot == PACKED)):
        return int(dims.kv_heads if slot == NEIGHBOURS[1] else dims.heads)
    return 0


def _slot(tensor: Tensor) -> str:
    """The slot of a weight, also of its bias."""
    return tensor.slot.replace("_bias", "")


def _joined(parts: list[TensorInfo]) -> TensorInfo:
    first = parts[0]
    if len(parts) == 1:
        return first
    dtype = first.dtype if len({part.dtype for part in parts}) == 1 else "float32"
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    return Joined(shape, dtype, first.file, first.offset, parts=tuple(parts))


def _with_zeros(
    codes: NDArray[np.int16], scales: NDArray[np.float32], shifts: NDArray[np.float32]
) -> tuple[NDArray[np.int16], NDArray[np.float32], NDArray[np.float32]]:
    """Unsigned codes * scale + shift as (signed code + zero) * scale."""
    middle = np.int16(8 if codes.max() < 16 else 16)
    constant = scales == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        zeros = np.where(constant, np.float32(1), np.float32(middle) + shifts / scales).astype(np.float32)
    codes = np.where(constant[..., None], 0, codes - middle).astype(np.int16)
    return codes, np.where(constant, shifts, scales), zeros
