"""The family's paddle model in batch generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle

from llmctl.card.dims import Dims
from llmctl.card.rope import context_length
from llmctl.infer.eager.model import Choose, as_it_is
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

    def begin(self, max_length: int, use_cache: bool = True) -> DynamicSession:
        """A session for new rows; with a cache, it has room for this many positions, padding included."""
        return DynamicSession(self.layer, KVCache(max_length) if use_cache else None)


class DynamicSession:
    """Rows that the paddle model computes.

    Args:
        layer: The layer.
        cache: The KV cache; None = every step computes all tokens.
    """

    def __init__(self, layer: Any, cache: KVCache | None) -> None:
        self.layer, self.cache, self.past = layer, cache, 0

    @paddle.no_grad()
    def step(self, ids_BT: np.ndarray, mask_BS: np.ndarray, choose: Choose = as_it_is) -> np.ndarray:
        """What is chosen from the logits [B, V] after the last position."""
        return self._chosen(ids_BT, mask_BS, lambda hidden_BTD: hidden_BTD[:, -1], choose)

    @paddle.no_grad()
    def all_logits(self, ids_BT: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
        """Logits [B, T, V] after each new position."""
        return self._chosen(ids_BT, mask_BS, lambda hidden_BTD: hidden_BTD, as_it_is)

    def _chosen(self, ids_BT: np.ndarray, mask_BS: np.ndarray, of: Callable[[Any], Any], choose: Choose) -> np.ndarray:
        """What is chosen from the logits of a part of the hidden states of the new positions, on all ranks that compute them."""
        mask = None if mask_BS.all() else paddle.to_tensor(mask_BS)

        def hidden() -> tuple[paddle.Tensor]:
            return (self.layer.hidden_states(paddle.to_tensor(ids_BT), mask, None, self.cache),)

        stage, agreement = (getattr(self.layer, name, None) for name in ("stage", "agreement"))
        found = hidden() if stage is None else stage.forward(hidden)
        if self.cache is not None:
            self.past += ids_BT.shape[1]
        logits = None if found is None else self.layer.logits(of(*found))

        def chosen() -> np.ndarray:
            return choose(to_numpy(logits))

        return chosen() if agreement is None else agreement.chosen(chosen)

    def select(self, rows: list[int]) -> None:
        """Keeps these rows."""
        if self.cache is not None:
            self.cache.select(rows)


def max_positions(layer: Any, dims: Dims) -> int:
    """Maximum number of tokens of prompt and answer that a layer takes; 0 = any number."""
    limit = 0 if getattr(layer, "position_depends_on_length", False) else context_length(dims)
    return max(1, limit - getattr(layer, "virtual_tokens", 0)) if limit else 0
