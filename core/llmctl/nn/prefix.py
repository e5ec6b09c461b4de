"""Prefix tuning: trained keys and values of virtual tokens before the text, in every layer; the model itself is frozen.

https://arxiv.org/abs/2101.00190. Shape suffixes as in the package's docstring; P counts virtual tokens. A ``CausalLM`` prepends
its ``prefix`` to every sequence; the masks, positions and caches of its callers do not count it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import paddle
from paddle.nn.initializer import Normal, Uniform

from llmctl.nn.arrays import to_numpy
from llmctl.nn.cache import KVCache

Pair = tuple[paddle.Tensor, paddle.Tensor]


class Prefix(paddle.nn.Layer):
    """Keys and values of P virtual tokens for each layer, drawn from normal(0, 1).

    With a projection an MLP with tanh computes them, whose input and first linear are shared by all layers; after training
    only its output is needed.

    Args:
        shape: Layers, 2, P, key-value heads, head_dim.
        dtype: Data type of the parameters.
        projection: Hidden width of the MLP; 0 = no MLP, the keys and values are the parameters.

    Attributes:
        held: The layers whose keys and values this has.
    """

    held: Sequence[int]

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: str, projection: int = 0) -> None:
        super().__init__()
        self.layers, _, self.length, kv_heads, head_dim = shape
        self.held = range(self.layers)
        self._head_dim, width = head_dim, kv_heads * head_dim
        self._projection = projection

        def add(name: str, size: list[int], bound: float) -> None:
            init = Uniform(-bound, bound) if bound else Normal(0.0, 1.0)
            self.add_parameter(name, self.create_parameter(size, dtype=dtype, default_initializer=init))

        if projection:
            add("embedding", [self.length, width], 0.0)
            add("hidden_weight", [width, projection], width**-0.5)
            add("hidden_bias", [projection], width**-0.5)
        for layer in range(self.layers):
            if projection:
                add(f"out_weight_{layer}", [projection, 2 * width], projection**-0.5)
                add(f"out_bias_{layer}", [2 * width], projection**-0.5)
            else:
                add(f"pair_{layer}", [2, self.length, kv_heads, head_dim], 0.0)

    def keep(self, layers: Iterable[int]) -> None:
        """Drops the keys and values of all other layers."""
        self.held = sorted(layers)
        for layer in range(self.layers):
            if layer not in self.held:
                for name in (f"pair_{layer}", f"out_weight_{layer}", f"out_bias_{layer}"):
                    self._parameters.pop(name, None)

    def pair(self, layer: int) -> Pair:
        """Keys and values of a layer [P, K, H].

        They are computed from the parameters at each call, so that recomputed layers (gradient checkpointing) reach the
        parameters.
        """
        if not self._projection:
            both = getattr(self, f"pair_{layer}")
        else:
            hidden = paddle.tanh(paddle.matmul(self.embedding, self.hidden_weight) + self.hidden_bias)
            out = paddle.matmul(hidden, getattr(self, f"out_weight_{layer}")) + getattr(self, f"out_bias_{layer}")
            # Of several ranks each has some of the heads.
            both = out.reshape([self.length, 2, -1, self._head_dim]).transpose([1, 0, 2, 3])
        return both[0], both[1]

    @paddle.no_grad()
    def values(self) -> np.ndarray:
        """The keys and values of the layers it has [layers, 2, P, K, H]."""
        return np.stack([np.stack([to_numpy(part) for part in self.pair(layer)]) for layer in self.held])

    @paddle.no_grad()
    def set_values(self, values: Any) -> None:
        """Sets its keys and values from those of all layers [layers, 2, P, K, H]; for a prefix without projection."""
        for layer in self.held:
            parameter = getattr(self, f"pair_{layer}")
            parameter.set_value(paddle.to_tensor(values[layer]).astype(parameter.dtype))

    def prepend(
        self,
        batch: int,
        cache: KVCache | None,
        mask_BS: paddle.Tensor | None,
        position_BT: paddle.Tensor | None,
    ) -> tuple[Any, paddle.Tensor | None, paddle.Tensor | None]:
        """Cache, mask and position ids of a call, with the virtual tokens prepended.

        Args:
            batch: Batch size.
            cache: Filled if empty; None = a cache for this call only, which gradients pass through.
            mask_BS: The caller's, over past and new tokens.
            position_BT: The caller's, from 0.
        """
        if cache is None:
            cache = PrefixCache(self)
        elif not cache.length:
            self._fill(cache, batch)
        if mask_BS is not None:
            mask_BS = paddle.concat([paddle.ones([mask_BS.shape[0], self.length], mask_BS.dtype), mask_BS], axis=1)
        return cache, mask_BS, None if position_BT is None else position_BT + self.length

    @paddle.no_grad()
    def _fill(self, cache: KVCache, batch: int) -> None:
        cache.max_length += self.length
        for layer in self.held:
            cache.update(layer, *(expand_to_batch(part, batch) for part in self.pair(layer)))
        cache.advance(self.length)


class PrefixCache:
    """The cache of a single call: the virtual tokens. Keys and values of the call are not kept.

    Args:
        prefix: The virtual tokens.
    """

    def __init__(self, prefix: Prefix) -> None:
        self.length = prefix.length
        self.rows: dict[str, paddle.Tensor] = {}
        self._prefix = prefix

    def update(self, layer: int, k_BTKH: paddle.Tensor, v_BTKH: paddle.Tensor) -> Pair:
        """The layer's virtual tokens followed by the new keys and values; k_BSKH and v_BSKH."""
        pair = zip(self._prefix.pair(layer), (k_BTKH, v_BTKH), strict=True)
        k_BSKH, v_BSKH = (paddle.concat([expand_to_batch(past, new.shape[0]), new], axis=1) for past, new in pair)
        return k_BSKH, v_BSKH

    def advance(self, new: int) -> None:
        """Does nothing: the cache ends with the call."""


def expand_to_batch(part_PKH: paddle.Tensor, batch: int) -> paddle.Tensor:
    """The same for every row: [B, P, K, H]."""
    return part_PKH.unsqueeze(0).expand([batch, *part_PKH.shape])
