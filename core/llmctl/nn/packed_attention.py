"""Self-attention with one packed projection for queries, keys and values, in the layouts that families use.

A layout maps the projection's output [B, T, C] and head_dim to q_BTNH, k_BTKH and v_BTKH.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle

from llmctl.nn.attention import attend, split_heads
from llmctl.nn.cache import KVCache
from llmctl.nn.linear import Linear
from llmctl.nn.mask import Mask
from llmctl.nn.rotary import ApplyRope

Unpack = Callable[[paddle.Tensor, int], tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]]


def concatenated_qkv(packed_BTC: paddle.Tensor, head_dim: int) -> tuple[paddle.Tensor, ...]:
    """Layout ``3*heads*head_dim``: all queries, then all keys, then all values."""
    return tuple(split_heads(part, head_dim) for part in paddle.split(packed_BTC, 3, axis=-1))


def interleaved_qkv(packed_BTC: paddle.Tensor, head_dim: int) -> tuple[paddle.Tensor, ...]:
    """Layout ``heads*3*head_dim``: query, key and value of each head together."""
    return tuple(paddle.split(split_heads(packed_BTC, 3 * head_dim), 3, axis=-1))


def grouped_qkv(groups: int) -> Unpack:
    """Layout ``heads*head_dim + kv_heads*head_dim + kv_heads*head_dim`` of grouped-query attention.

    Args:
        groups: Query heads per key-value head. A tensor-parallel rank with less than a whole group has a copy of its one
            key-value head.
    """

    def unpack(packed_BTC: paddle.Tensor, head_dim: int) -> tuple[paddle.Tensor, ...]:
        heads = split_heads(packed_BTC, head_dim)
        kv_heads = max(1, heads.shape[2] // (groups + 2))
        return tuple(paddle.split(heads, [heads.shape[2] - 2 * kv_heads, kv_heads, kv_heads], axis=2))

    return unpack


class PackedAttention(paddle.nn.Layer):
    """Self-attention with a packed projection, which has a bias.

    The number of heads follows from the projection's width, which tensor parallelism divides.

    Args:
        dims: ``hidden``, ``heads``, ``kv_heads``, ``head_dim`` and ``init_std`` of the model.
        unpack: The layout.
        names: Names of the packed and the output projection in the state dict.
        out_bias: Whether the output projection has a bias.
        rope: (q, k, cos_sin) -> (q, k); None = no RoPE.
        dropout: Dropout of the attention weights in training.
        scale: Further factor of the queries, besides 1/sqrt(head_dim).
    """

    def __init__(
        self,
        dims: Any,
        unpack: Unpack,
        names: tuple[str, str] = ("query_key_value", "dense"),
        out_bias: bool = True,
        rope: ApplyRope | None = None,
        dropout: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        width = dims.heads * dims.head_dim
        self.add_sublayer(names[0], Linear(dims.hidden, width + 2 * dims.kv_heads * dims.head_dim, True, dims.init_std))
        self.add_sublayer(names[1], Linear(width, dims.hidden, out_bias, dims.init_std))
        self.head_dim, self._names, self._unpack, self._rope = dims.head_dim, names, unpack, rope
        self._dropout, self._scale = dropout, scale

    def forward(
        self, x_BTD: paddle.Tensor, cos_sin: Any, mask: Mask | None, cache: KVCache | None = None, layer: int = 0
    ) -> paddle.Tensor:
        project, out = (getattr(self, name) for name in self._names)
        q, k, v = self._unpack(project(x_BTD), self.head_dim)
        if self._rope is not None:
            q, k = self._rope(q, k, cos_sin)
        if self._scale != 1.0:
            q = q * self._scale
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return out(attend(q, k, v, mask, self._dropout if self.training else 0.0))
