"""Tensors of a GGUF file under the names of Hugging Face's checkpoints: values, and codes as they are.

Shape suffixes: O outputs, I inputs of a linear, G groups of 32 inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.dims import Dims
from llmctl.card.family import Family, Tensor
from llmctl.checkpoint.formats.dtypes import cast
from llmctl.checkpoint.formats.gguf import GgufFile, Stored
from llmctl.checkpoint.formats.tensor_info import CHUNK_BYTES, CodedTensor, TensorInfo
from llmctl.checkpoint.gguf.names import FREQUENCIES, gguf_name
from llmctl.errors import CheckpointError
from llmctl.quant.formats.codes import Codes, consecutive
from llmctl.quant.formats.gguf_blocks import GROUP, TYPES, Blocks, BlockType

NEIGHBOURS = ("qkv.0", "qkv.1")
"""Slots whose outputs may be in another order, in their weights and biases."""


@dataclass(frozen=True)
class GgufTensor(CodedTensor):
    """Rows of blocks, in the order of the file or one in which RoPE's pairs are halves of a head apart.

    Attributes:
        kind: How a row is stored.
        heads: Heads whose rows are in another order; 0 = none.
    """

    kind: BlockType = TYPES[0]
    heads: int = 0

    def codes(self) -> Codes:
        """The codes of 32 inputs that share a scale: those of the file, or of types with smaller groups the nearest of 8 bits."""
        blocks = self._blocks(np.arange(self.shape[0]))
        outputs, inputs = self.shape
        if blocks.scales_BG.shape[1] * GROUP > self.kind.size:
            codes, scales = _nearest(blocks.values().reshape(outputs, -1, GROUP))
            zeros, bits = np.zeros_like(scales), 8
        else:
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
            try:
                out[low : low + len(rows)] = cast(self._values(rows), self.dtype, dtype)
            except ValueError as error:
                raise CheckpointError(f"{self.file}: {error}") from None

    def _values(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        shape = (len(rows), *self.shape[1:])
        if self.kind.decode is not None:
            return self._blocks(rows).values().reshape(shape)
        return self._raw(rows).view({"float32": "<f4", "float16": "<f2"}.get(self.dtype, "<u2")).reshape(shape)

    def _blocks(self, rows: NDArray[np.int64]) -> Blocks:
        assert self.kind.decode is not None, "only codes have blocks"
        return self.kind.decode(self._raw(rows).reshape(-1, self.kind.nbytes))

    def _raw(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The bytes of rows [rows, bytes]."""
        if self.heads:
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


def named_tensors(file: GgufFile, card: Family, dims: Dims) -> dict[str, TensorInfo]:
    """The tensors of a file by their names in Hugging Face's checkpoints.

    Raises:
        CheckpointError: A tensor is missing or has another shape, or there is one more.
        UnsupportedError: The family has a tensor that GGUF has no place for.
    """
    found, left = {}, set(file.tensors) - {FREQUENCIES}
    for tensor in card.expand(dims):
        name = gguf_name(tensor, card.name)
        stored = file.tensors.get(name)
        if stored is None:
            raise CheckpointError(f"{file.path} has no tensor {name}, which its metadata asks for; it is incomplete")
        left.discard(name)
        found[tensor.torch_name] = _info(name, stored, tensor, card, dims)
    if left:
        raise CheckpointError(
            f"{file.path} has {len(left)} tensors that the family {card.name} does not have, such as {sorted(left)[0]}"
        )
    return found


def _info(name: str, stored: Stored, tensor: Tensor, card: Family, dims: Dims) -> TensorInfo:
    shape, offset = tensor.shape[::-1] if tensor.transpose else tensor.shape, stored.offset
    whole = shape
    if tensor.expert is not None:
        whole = (int(dims.experts), *shape)
        offset += tensor.expert * (stored.nbytes // whole[0])
    if stored.shape != whole:
        raise CheckpointError(
            f"{stored.file}: the tensor {name} is {list(stored.shape)}, its metadata asks for {list(whole)}"
        )
    kind, heads = stored.type, heads_of(tensor, card, dims)
    if kind.decode is None and not heads:
        return TensorInfo(shape, kind.dtype, stored.file, offset)
    return GgufTensor(shape, kind.dtype, stored.file, offset, kind=kind, heads=heads)


def heads_of(tensor: Tensor, card: Family, dims: Dims) -> int:
    """Heads of a tensor whose rows are in another order."""
    slot = tensor.slot.replace("_bias", "")
    if card.gguf is None or not card.gguf.neighbours or slot not in NEIGHBOURS:
        return 0
    return int(dims.heads if slot == NEIGHBOURS[0] else dims.kv_heads)


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


def _nearest(values: NDArray[np.float32]) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """The nearest codes of 8 bits, and their scales, values of float16."""
    scales = (np.abs(values).max(-1) / np.float32(127)).astype(np.float16).astype(np.float32)
    units = np.where(scales == 0, np.float32(1), scales)[..., None]
    return np.rint(values / units).clip(-128, 127).astype(np.int16), scales
