"""The paged KV cache as paddle tensors.

A slot is an index into the cache's positions: block * BLOCK + offset. Shape suffixes: S slots that are written or read, K key-value
heads, H head_dim.
"""

from __future__ import annotations

import numpy as np
import paddle
from paddle.nn import functional as F

from llmctl.infer.executors.base import BLOCK

try:
    from llmctl_ops import cuda
except ImportError:  # without the distribution paddle's operations do the same
    cuda = None

MAX_CODE = 127
"""Largest int8 code; the scale of a head is its largest magnitude / 127."""

LARGEST_HALF = 65504.0
"""Of float16; larger finite values are stored as this."""

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def slots(block_table_M: np.ndarray, kv_position_S: np.ndarray) -> np.ndarray:
    """The slots [S] of KV positions of a sequence with this block table."""
    return block_table_M[kv_position_S // BLOCK].astype(np.int64) * BLOCK + kv_position_S % BLOCK


class PagedCache:
    """Keys and values of all layers.

    Args:
        layers: Their number.
        heads: K.
        head_dim: H.
        dtype: Type that keys and values are read in.
        kv: Type that they are stored in: ``dtype``, ``float16``, or ``int8`` with a scale for each head of each position.
    """

    def __init__(self, layers: int, heads: int, head_dim: int, dtype: str, kv: str) -> None:
        self._layers, self._shape, self._dtype, self._kv = layers, [heads, head_dim], dtype, kv
        self._stored: list[tuple[_Entries, _Entries]] = []

    @property
    def block_bytes(self) -> int:
        """Bytes of a block over all layers."""
        heads, head_dim = self._shape
        bytes_of_head = head_dim + BYTES["float32"] if self._kv == "int8" else head_dim * BYTES[self._kv]
        return 2 * self._layers * BLOCK * heads * bytes_of_head

    def allocate(self, blocks: int) -> None:
        """Allocates this many blocks; the contents of the previous ones are lost."""
        self._stored = []
        kinds = {"int8": _Int8Entries, self._dtype: _FloatEntries}
        kind = kinds.get(self._kv, _HalfEntries)
        for _ in range(self._layers):
            self._stored.append((kind(blocks, self._shape, self._dtype), kind(blocks, self._shape, self._dtype)))

    def write(self, layer: int, slot_S: paddle.Tensor, k_SKH: paddle.Tensor, v_SKH: paddle.Tensor) -> None:
        """Writes keys and values to slots."""
        for entries, new in zip(self._stored[layer], (k_SKH, v_SKH), strict=True):
            entries.write(slot_S, new)

    def read(self, layer: int, slot_S: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Keys and values [S, K, H] in slots."""
        keys, values = self._stored[layer]
        return keys.read(slot_S), values.read(slot_S)

    def copy(self, source: int, target: int) -> None:
        """Copies a block."""
        offsets = paddle.arange(BLOCK, dtype="int64")
        for pair in self._stored:
            for entries in pair:
                entries.copy(offsets + source * BLOCK, offsets + target * BLOCK)


class _FloatEntries:
    """Entries in the type that they are read in."""

    def __init__(self, blocks: int, shape: list[int], dtype: str) -> None:
        self._entries = paddle.zeros([blocks * BLOCK, *shape], dtype)

    def write(self, slot_S: paddle.Tensor, new_SKH: paddle.Tensor) -> None:
        paddle.index_put_(self._entries, (slot_S,), new_SKH)

    def read(self, slot_S: paddle.Tensor) -> paddle.Tensor:
        return paddle.gather(self._entries, slot_S)

    def copy(self, source_S: paddle.Tensor, target_S: paddle.Tensor) -> None:
        self.write(target_S, self.read(source_S))


class _HalfEntries:
    """Entries as float16 that are read in a wider type, each as one row: paddle looks up rows of float16 on a CPU, but gathers none."""

    def __init__(self, blocks: int, shape: list[int], dtype: str) -> None:
        self._rows = paddle.zeros([blocks * BLOCK, shape[0] * shape[1]], "float16")
        self._shape, self._dtype = shape, dtype

    def write(self, slot_S: paddle.Tensor, new_SKH: paddle.Tensor) -> None:
        within = paddle.where(paddle.isfinite(new_SKH), new_SKH.clip(-LARGEST_HALF, LARGEST_HALF), new_SKH)
        paddle.index_put_(self._rows, (slot_S,), within.astype("float16").reshape([len(slot_S), -1]))

    def read(self, slot_S: paddle.Tensor) -> paddle.Tensor:
        return F.embedding(slot_S, self._rows).astype(self._dtype).reshape([len(slot_S), *self._shape])

    def copy(self, source_S: paddle.Tensor, target_S: paddle.Tensor) -> None:
        paddle.index_put_(self._rows, (target_S,), F.embedding(source_S, self._rows))


class _Int8Entries:
    """Entries as int8 codes with a scale for each head of each position."""

    def __init__(self, blocks: int, shape: list[int], dtype: str) -> None:
        self._codes = paddle.zeros([blocks * BLOCK, *shape], "int8")
        self._scales = paddle.zeros([blocks * BLOCK, shape[0]], "float32")
        self._dtype = dtype

    def write(self, slot_S: paddle.Tensor, new_SKH: paddle.Tensor) -> None:
        if cuda is not None and cuda.serves(new_SKH):
            cuda.quantize_kv(new_SKH, slot_S, self._codes, self._scales)
            return
        wide = new_SKH.astype("float32")
        scale_SK = wide.abs().max(axis=-1) / MAX_CODE
        # A head of zeros has scale 0; dividing by any number gives codes 0.
        codes = paddle.round(wide / scale_SK.clip(min=1e-30).unsqueeze(-1)).astype("int8")
        paddle.index_put_(self._codes, (slot_S,), codes)
        paddle.index_put_(self._scales, (slot_S,), scale_SK)

    def read(self, slot_S: paddle.Tensor) -> paddle.Tensor:
        codes, scales = paddle.gather(self._codes, slot_S), paddle.gather(self._scales, slot_S)
        return (codes.astype("float32") * scales.unsqueeze(-1)).astype(self._dtype)

    def copy(self, source_S: paddle.Tensor, target_S: paddle.Tensor) -> None:
        paddle.index_put_(self._codes, (target_S,), paddle.gather(self._codes, source_S))
        paddle.index_put_(self._scales, (target_S,), paddle.gather(self._scales, source_S))


_Entries = _FloatEntries | _HalfEntries | _Int8Entries
