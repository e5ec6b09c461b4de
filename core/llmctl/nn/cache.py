"""The KV cache of the layers, for generation. Paged and quantized caches are in ``infer``."""

from __future__ import annotations

import paddle

FIRST = 256
"""Smallest number of positions to allocate."""


class KVCache:
    """Keys and values of up to ``max_length`` positions per layer; buffers double as they fill.

    Every layer writes with ``update``; the model calls ``advance`` once after its last layer.

    A model may keep tensors [B, ...] of its own in ``rows``; ``select`` reorders them too.

    Args:
        max_length: Positions, padding included.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.length = 0
        self.rows: dict[str, paddle.Tensor] = {}
        self._layers: dict[int, tuple[paddle.Tensor, ...]] = {}

    @paddle.no_grad()
    def update(self, layer: int, k_BTKH: paddle.Tensor, v_BTKH: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Appends a layer's new keys and values; returns past and new ones together, k_BSKH and v_BSKH.

        Raises:
            ValueError: The cache is full.
        """
        end = self.length + k_BTKH.shape[1]
        if end > self.max_length:
            raise ValueError(f"the cache has room for {self.max_length} positions, {end} are needed")
        self._layers[layer] = tuple(
            self._grown(buffer, new, end)
            for buffer, new in zip(self._layers.get(layer, (None, None)), (k_BTKH, v_BTKH), strict=True)
        )
        for buffer, new in zip(self._layers[layer], (k_BTKH, v_BTKH), strict=True):
            buffer[:, self.length : end] = new
        keys, values = self._layers[layer]
        return keys[:, :end], values[:, :end]

    @property
    def layers(self) -> int:
        """Number of layers with cached keys."""
        return len(self._layers)

    def pair(self, layer: int) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Cached keys and values of a layer [B, S, K, H]."""
        keys, values = self._layers[layer]
        return keys[:, : self.length], values[:, : self.length]

    def advance(self, new: int) -> None:
        """Marks ``new`` positions as past."""
        self.length += new

    @paddle.no_grad()
    def select(self, rows: list[int]) -> None:
        """Keeps these rows of the batch, in this order; a row may occur more than once."""
        index = paddle.to_tensor(rows, dtype="int64")
        self._layers = {
            layer: (paddle.index_select(keys, index), paddle.index_select(values, index))
            for layer, (keys, values) in self._layers.items()
        }
        self.rows = {name: paddle.index_select(kept, index) for name, kept in self.rows.items()}

    def _grown(self, buffer: paddle.Tensor | None, new_BTKH: paddle.Tensor, end: int) -> paddle.Tensor:
        """The buffer if it has room for ``end`` positions, else one of at least twice its size."""
        allocated = 0 if buffer is None else buffer.shape[1]
        if end <= allocated:
            return buffer
        batch, _, kv_heads, head_dim = new_BTKH.shape
        more = min(self.max_length, max(end, 2 * allocated, FIRST)) - allocated
        room = paddle.zeros([batch, more, kv_heads, head_dim], dtype=new_BTKH.dtype)
        return room if buffer is None else paddle.concat([buffer, room], axis=1)
