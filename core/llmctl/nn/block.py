"""One layer of a decoder; ``decoder`` stacks them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle

from llmctl.nn.cache import KVCache
from llmctl.nn.mask import Mask

NAMES = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")


class Block(paddle.nn.Layer):
    """The pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        attention: Called with (x, cos_sin, mask, cache, layer).
        mlp: Called with x.
        input_norm: Before attention.
        post_attention_norm: Before the MLP.
        names: Names of these four in the state dict.
        residual: The residual, from x and norm(x); None = x.
        dropout: Dropout of both outputs before they are added to the residual, in training.
    """

    def __init__(
        self,
        attention: paddle.nn.Layer,
        mlp: paddle.nn.Layer,
        input_norm: paddle.nn.Layer,
        post_attention_norm: paddle.nn.Layer,
        names: tuple[str, str, str, str] = NAMES,
        residual: Callable[[paddle.Tensor, paddle.Tensor], paddle.Tensor] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, sublayer in zip(names, (attention, mlp, input_norm, post_attention_norm), strict=True):
            self.add_sublayer(name, sublayer)
        self._names, self._residual, self._dropout = names, residual, dropout

    def forward(
        self, x_BTD: paddle.Tensor, cos_sin: Any, mask: Mask | None, cache: KVCache | None = None, layer: int = 0
    ) -> paddle.Tensor:
        attention, mlp, first_norm, second_norm = (getattr(self, name) for name in self._names)
        x_BTD = self._add(x_BTD, first_norm, lambda x: attention(x, cos_sin, mask, cache, layer))
        return self._add(x_BTD, second_norm, mlp)

    def _add(
        self, x_BTD: paddle.Tensor, norm: paddle.nn.Layer, sublayer: Callable[[paddle.Tensor], paddle.Tensor]
    ) -> paddle.Tensor:
        normed = norm(x_BTD)
        residual = x_BTD if self._residual is None else self._residual(x_BTD, normed)
        out = sublayer(normed)
        if self._dropout and self.training:
            out = paddle.nn.functional.dropout(out, self._dropout)
        return residual + out
