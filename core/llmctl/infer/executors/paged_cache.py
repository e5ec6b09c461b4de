"""Keys and values in blocks, as paddle tensors: the cache of the composed executor.

Letters: S places that are written or read, K key-value heads, H width of a head.
"""

from __future__ import annotations

import numpy as np
import paddle

from llmctl.infer.executors.base import BLOCK

try:
    from llmctl_ops import cuda
except ImportError:  # without the distribution paddle's operations do the same
    cuda = None

CODES = 127
"""Largest code of a key or value that is held as int8; 1 / 127 of the head's largest entry is the unit."""

WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}


def slots(blocks_M: np.ndarray, place_S: np.ndarray) -> np.ndarray:
    """Where the places of a sequence with these blocks lie in a layer's cache [S]."""
    return blocks_M[place_S // BLOCK].astype(np.int64) * BLOCK + place_S % BLOCK


class PagedCache:
    """Keys and values of all layers, ``BLOCK`` places to a block.

    Args:
        layers: Their number.
        heads: K.
        head_dim: H.
        dtype: Type that keys and values are read in.
        coded: Whether they are held as int8, with a scale for each head of each place.
    """

    def __init__(self, layers: int, heads: int, head_dim: int, dtype: str, coded: bool = False) -> None:
        self._layers, self._shape, self._dtype, self._coded = layers, [heads, head_dim], dtype, coded
        self._held: list[tuple[_Held, _Held]] = []

    @property
    def block_bytes(self) -> int:
        """Memory of a block over all layers."""
        heads, width = self._shape
        bytes_of_head = width + WIDTHS["float32"] if self._coded else width * WIDTHS[self._dtype]
        return 2 * self._layers * BLOCK * heads * bytes_of_head

    def allocate(self, blocks: int) -> None:
        """Makes room for so many blocks; what was held is lost."""
        self._held = []
        kind = _Coded if self._coded else _Plain
        for _ in range(self._layers):
            self._held.append((kind(blocks, self._shape, self._dtype), kind(blocks, self._shape, self._dtype)))

    def write(self, layer: int, slot_S: paddle.Tensor, k_SKH: paddle.Tensor, v_SKH: paddle.Tensor) -> None:
        """Writes keys and values to slots."""
        for held, new in zip(self._held[layer], (k_SKH, v_SKH), strict=True):
            held.write(slot_S, new)

    def read(self, layer: int, slot_S: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Keys and values [S, K, H] in slots."""
        keys, values = self._held[layer]
        return keys.read(slot_S), values.read(slot_S)

    def copy(self, source: int, target: int) -> None:
        """Copies a block."""
        places = paddle.arange(BLOCK, dtype="int64")
        for pair in self._held:
            for held in pair:
                held.copy(places + source * BLOCK, places + target * BLOCK)


class _Plain:
    """Entries in the type that they are read in."""

    def __init__(self, blocks: int, shape: list[int], dtype: str) -> None:
        self._entries = paddle.zeros([blocks * BLOCK, *shape], dtype)

    def write(self, slot_S: paddle.Tensor, new_SKH: paddle.Tensor) -> None:
        paddle.index_put_(self._entries, (slot_S,), new_SKH)

    def read(self, slot_S: paddle.Tensor) -> paddle.Tensor:
        return paddle.gather(self._entries, slot_S)

    def copy(self, source_S: paddle.Tensor, target_S: paddle.Tensor) -> None:
        self.write(target_S, self.read(source_S))


class _Coded:
    """Entries as int8 in units of 1/127 of the largest of their head and place."""

    def __init__(self, blocks: int, shape: list[int], dtype: str) -> None:
        self._codes = paddle.zeros([blocks * BLOCK, *shape], "int8")
        self._units = paddle.zeros([blocks * BLOCK, shape[0]], "float32")
        self._dtype = dtype

    def write(self, slot_S: paddle.Tensor, new_SKH: paddle.Tensor) -> None:
        if cuda is not None and cuda.serves(new_SKH):
            cuda.quantize_kv(new_SKH, slot_S, self._codes, self._units)
            return
        wide = new_SKH.astype("float32")
        unit_SK = wide.abs().max(axis=-1) / CODES
        # A head of zeros has no unit; any will do.
        codes = paddle.round(wide / unit_SK.clip(min=1e-30).unsqueeze(-1)).astype("int8")
        paddle.index_put_(self._codes, (slot_S,), codes)
        paddle.index_put_(self._units, (slot_S,), unit_SK)

    def read(self, slot_S: paddle.Tensor) -> paddle.Tensor:
        codes, units = paddle.gather(self._codes, slot_S), paddle.gather(self._units, slot_S)
        return (codes.astype("float32") * units.unsqueeze(-1)).astype(self._dtype)

    def copy(self, source_S: paddle.Tensor, target_S: paddle.Tensor) -> None:
        paddle.index_put_(self._codes, (target_S,), paddle.gather(self._codes, source_S))
        paddle.index_put_(self._units, (target_S,), paddle.gather(self._units, source_S))


_Held = _Plain | _Coded
