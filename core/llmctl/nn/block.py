"""One layer of a decoder. The stack of layers is in ``decoder``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle

from llmctl.nn.cache import KVCache
from llmctl.nn.mask import Mask

NAMES = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")


class Block(paddle.nn.Layer):
    """x + attention(norm(x)), then x + mlp(norm(x)): the pre-norm block, with parts given by the family.

    Args:
        attention: Called with (x, angles, mask, cache, layer).
        mlp: Called with x.
        input_norm: Before attention.
        post_attention_norm: Before the MLP.
        names: Names of the four parts in the state dict.
        carry: What each part's output is added to, from x and norm(x); None = x.
        dropout: Part of each part's output that is left out in training.
    """

    def __init__(
        self,
        attention: paddle.nn.Layer,
        mlp: paddle.nn.Layer,
        input_norm: paddle.nn.Layer,
        post_attention_norm: paddle.nn.Layer,
        names: tuple[str, str, str, str] = NAMES,
        carry: Callable[[paddle.Tensor, paddle.Tensor], paddle.Tensor] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, part in zip(names, (attention, mlp, input_norm, post_attention_norm), strict=True):
            self.add_sublayer(name, part)
        self._names, self._carry, self._dropout = names, carry, dropout

    def forward(
        self, x_BTD: paddle.Tensor, angles: Any, mask: Mask | None, cache: KVCache | None = None, layer: int = 0
    ) -> paddle.Tensor:
        attention, mlp, first_norm, second_norm = (getattr(self, name) for name in self._names)
        x_BTD = self._add(x_BTD, first_norm, lambda x: attention(x, angles, mask, cache, layer))
        return self._add(x_BTD, second_norm, mlp)

    def _add(
        self, x_BTD: paddle.Tensor, norm: paddle.nn.Layer, part: Callable[[paddle.Tensor], paddle.Tensor]
    ) -> paddle.Tensor:
        normed = norm(x_BTD)
        carried = x_BTD if self._carry is None else self._carry(x_BTD, normed)
        out = part(normed)
        if self._dropout and self.training:
            out = paddle.nn.functional.dropout(out, self._dropout)
        return carried + out
