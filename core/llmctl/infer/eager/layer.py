"""The family's paddle model in batch generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

from llmctl.card.dims import Dims
from llmctl.card.rope import context_length
from llmctl.nn.arrays import to_numpy
from llmctl.nn.cache import KVCache


class DynamicModel:
    """A layer with ``hidden_states`` and ``logits``, set to evaluation.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: Any) -> None:
        layer.eval()
        self.layer = layer
        length_dependent = getattr(layer, "position_depends_on_length", False)
        self.max_stable_length: int | None = getattr(layer, "max_stable_length", 0) if length_dependent else None

    def begin(self, columns: int, use_cache: bool = True) -> DynamicSession:
        """A session for new rows; with a cache, it has room for this many columns (tokens of a row, padding included)."""
        return DynamicSession(self.layer, KVCache(columns) if use_cache else None)


class DynamicSession:
    """Rows that the paddle model computes.

    Args:
        layer: The layer.
        cache: The KV cache; None = every step computes all tokens.
    """

    def __init__(self, layer: Any, cache: KVCache | None) -> None:
        self.layer, self.cache, self.past = layer, cache, 0

    @paddle.no_grad()
    def step(self, ids_BT: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
        """Logits [B, V] after the last column."""
        return to_numpy(self.layer.logits(self._hidden(ids_BT, mask_BS)[:, -1]))

    @paddle.no_grad()
    def columns(self, ids_BT: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
        """Logits [B, T, V] after each new column."""
        return to_numpy(self.layer.logits(self._hidden(ids_BT, mask_BS)))

    def _hidden(self, ids_BT: np.ndarray, mask_BS: np.ndarray) -> paddle.Tensor:
        """Hidden states [B, T, D] of the new columns."""
        mask = None if mask_BS.all() else paddle.to_tensor(mask_BS)
        hidden_BTD = self.layer.hidden_states(paddle.to_tensor(ids_BT), mask, None, self.cache)
        if self.cache is not None:
            self.past += ids_BT.shape[1]
        return hidden_BTD

    def select(self, rows: list[int]) -> None:
        """Keeps these rows."""
        if self.cache is not None:
            self.cache.select(rows)


def max_positions(layer: Any, dims: Dims) -> int:
    """Maximum number of tokens of prompt and answer that a layer takes; 0 = any number."""
    limit = 0 if getattr(layer, "position_depends_on_length", False) else context_length(dims)
    return max(1, limit - getattr(layer, "virtual_tokens", 0)) if limit else 0
