"""Keys and values of past positions, for generation. Paged and quantised caches are in ``infer``."""

from __future__ import annotations

import paddle


class KVCache:
    """Room for ``max_length`` positions per layer, allocated when a layer first writes.

    Every layer writes with ``update``; the model calls ``advance`` once after its last layer.

    Args:
        max_length: Positions, padding included.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.length = 0
        self._layers: dict[int, tuple[paddle.Tensor, paddle.Tensor]] = {}

    @paddle.no_grad()
    def update(self, layer: int, k_BTKH: paddle.Tensor, v_BTKH: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Writes a layer's new keys and values after the past ones; k_BSKH and v_BSKH with both.

        Raises:
            ValueError: The cache is full.
        """
        end = self.length + k_BTKH.shape[1]
        if end > self.max_length:
            raise ValueError(f"the cache has room for {self.max_length} positions, {end} are needed")
        if layer not in self._layers:
            self._layers[layer] = (self._allocate(k_BTKH), self._allocate(v_BTKH))
        for buffer, new in zip(self._layers[layer], (k_BTKH, v_BTKH), strict=True):
            buffer[:, self.length : end] = new
        keys, values = self._layers[layer]
        return keys[:, :end], values[:, :end]

    def advance(self, new: int) -> None:
        """Counts ``new`` positions as past."""
        self.length += new

    @paddle.no_grad()
    def select(self, rows: list[int]) -> None:
        """Keeps these rows of the batch, in this order; a row may be repeated."""
        index = paddle.to_tensor(rows, dtype="int64")
        self._layers = {
            layer: (paddle.index_select(keys, index), paddle.index_select(values, index))
            for layer, (keys, values) in self._layers.items()
        }

    def _allocate(self, new_BTKH: paddle.Tensor) -> paddle.Tensor:
        batch, _, heads, width = new_BTKH.shape
        return paddle.zeros([batch, self.max_length, heads, width], dtype=new_BTKH.dtype)
