"""Self-attention from one projection that holds queries, keys and values together, in the layouts that families use.

A layout takes the projection's output [B, T, C] and the width of a head, and gives q_BTNH, k_BTKH and v_BTKH.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle

from llmctl.nn.attention import attend, in_heads
from llmctl.nn.cache import KVCache
from llmctl.nn.linear import Linear
from llmctl.nn.mask import Mask

Unpack = Callable[[paddle.Tensor, int], tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]]
Turn = Callable[[paddle.Tensor, paddle.Tensor, Any], tuple[paddle.Tensor, paddle.Tensor]]


def blocks(packed_BTC: paddle.Tensor, head_dim: int) -> tuple[paddle.Tensor, ...]:
    """``3*heads*head_dim``: all queries, then all keys, then all values."""
    return tuple(in_heads(part, head_dim) for part in paddle.split(packed_BTC, 3, axis=-1))


def interleaved(packed_BTC: paddle.Tensor, head_dim: int) -> tuple[paddle.Tensor, ...]:
    """``heads*3*head_dim``: query, key and value of a head side by side."""
    return tuple(paddle.split(in_heads(packed_BTC, 3 * head_dim), 3, axis=-1))


def grouped(groups: int) -> Unpack:
    """``heads*head_dim + kv_heads*head_dim + kv_heads*head_dim``, with so many query heads to a key-value head.

    Where a split leaves less than a whole group, its one key-value head is a copy.
    """

    def unpack(packed_BTC: paddle.Tensor, head_dim: int) -> tuple[paddle.Tensor, ...]:
        heads = in_heads(packed_BTC, head_dim)
        kv_heads = max(1, heads.shape[2] // (groups + 2))
        return tuple(paddle.split(heads, [heads.shape[2] - 2 * kv_heads, kv_heads, kv_heads], axis=2))

    return unpack


class PackedAttention(paddle.nn.Layer):
    """Self-attention; the packed projection has a bias. Head counts come from its width, which may be split.

    Args:
        dims: ``hidden``, ``heads``, ``kv_heads``, ``head_dim`` and ``init_std`` of the model.
        unpack: The layout.
        names: Names of the packed and the output projection in the state dict.
        out_bias: Whether the output projection has a bias.
        turn: (q, k, angles) -> (q, k); None = positions do not enter here.
        dropout: Part of the weights that is left out in training.
        scale: Factor of the queries beside 1/sqrt(head_dim).
    """

    def __init__(
        self,
        dims: Any,
        unpack: Unpack,
        names: tuple[str, str] = ("query_key_value", "dense"),
        out_bias: bool = True,
        turn: Turn | None = None,
        dropout: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        width = dims.heads * dims.head_dim
        self.add_sublayer(names[0], Linear(dims.hidden, width + 2 * dims.kv_heads * dims.head_dim, True, dims.init_std))
        self.add_sublayer(names[1], Linear(width, dims.hidden, out_bias, dims.init_std))
        self.head_dim, self._names, self._unpack, self._turn = dims.head_dim, names, unpack, turn
        self._dropout, self._scale = dropout, scale

    def forward(
        self, x_BTD: paddle.Tensor, angles: Any, mask: Mask | None, cache: KVCache | None = None, layer: int = 0
    ) -> paddle.Tensor:
        project, out = (getattr(self, name) for name in self._names)
        q, k, v = self._unpack(project(x_BTD), self.head_dim)
        if self._turn is not None:
            q, k = self._turn(q, k, angles)
        if self._scale != 1.0:
            q = q * self._scale
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return out(attend(q, k, v, mask, self._dropout if self.training else 0.0))
