"""A mixture of experts as a feed-forward layer. Which expert a token goes to is decided in ``router``.

Shape legend: T tokens, D hidden, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import paddle


class SparseMLP(paddle.nn.Layer):
    """The weighted sum of the chosen experts' outputs; each expert sees only the tokens that chose it.

    Args:
        gate: x_TD -> (weight_TK, expert_TK), as ``router.SoftmaxTopK``.
        experts: Feed-forward layers.
    """

    def __init__(self, gate: paddle.nn.Layer, experts: Iterable[paddle.nn.Layer]) -> None:
        super().__init__()
        self.gate = gate
        self.experts = paddle.nn.LayerList(experts)

    def forward(self, x_BTD: paddle.Tensor) -> paddle.Tensor:
        x_TD = x_BTD.reshape([-1, x_BTD.shape[-1]])
        weight_TK, expert_TK = self.gate(x_TD)
        if not paddle.in_dynamic_mode():
            return self._traced(x_TD, weight_TK, expert_TK).reshape(paddle.shape(x_BTD))
        choices = weight_TK.shape[-1]
        chosen = expert_TK.numpy().reshape(-1)
        order = np.argsort(chosen, kind="stable")
        counts = np.bincount(chosen, minlength=len(self.experts))
        slots = paddle.to_tensor(order, dtype="int64")
        rows = paddle.gather(x_TD, slots // choices)
        outputs = [
            self.experts[expert](part)
            for expert, part in zip(
                np.flatnonzero(counts), paddle.split(rows, counts[counts > 0].tolist()), strict=True
            )
        ]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        routed_TKD = paddle.gather(paddle.concat(outputs), paddle.to_tensor(back, dtype="int64")).reshape(
            [-1, choices, x_TD.shape[-1]]
        )
        mixed_TD = paddle.matmul(weight_TK.unsqueeze(1), routed_TKD).squeeze(1)
        return mixed_TD.reshape(x_BTD.shape)

    def _traced(self, x_TD: paddle.Tensor, weight_TK: paddle.Tensor, expert_TK: paddle.Tensor) -> paddle.Tensor:
        """The same as operators of a program, which asks every expert, some for no tokens."""
        mixed_TD = paddle.zeros_like(x_TD)
        for index, expert in enumerate(self.experts):
            chosen_TK = (expert_TK == index).astype(weight_TK.dtype)
            weight_T1 = (weight_TK * chosen_TK).sum(axis=-1, keepdim=True)
            rows = paddle.nonzero(chosen_TK.sum(axis=-1) > 0)
            part = expert(paddle.gather_nd(x_TD, rows)) * paddle.gather_nd(weight_T1, rows)
            mixed_TD = paddle.scatter_nd_add(mixed_TD, rows, part)
        return mixed_TD
