"""Routing of tokens to experts.

Shape legend: T tokens, D hidden, E experts, K experts per token.
"""

from __future__ import annotations

import paddle
from paddle import nn
from paddle.nn import functional as F

from llmctl.card import Moe


class SoftmaxTopK(nn.Layer):
    """Softmax over all experts, the best K of them, weights renormalised where the card says so.

    The auxiliary loss is that of Switch Transformer (https://arxiv.org/abs/2101.03961, section 2.2) for K choices:
    experts x sum over experts of (mean choices of the expert) x (mean probability of the expert), unscaled.

    Args:
        hidden: D.
        experts: E.
        moe: The card's routing.
    """

    def __init__(self, hidden: int, experts: int, moe: Moe):
        super().__init__()
        if moe.router != "softmax-topk":
            raise ValueError(f"router={moe.router!r} is unknown; known: 'softmax-topk'")
        if not 1 <= moe.top_k <= experts:
            raise ValueError(f"top_k={moe.top_k} must be between 1 and experts={experts}")
        self.moe = moe
        self.weight = self.create_parameter([hidden, experts])

    def forward(self, x_TD: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Weights [T, K] in the type of x, experts [T, K] as whole numbers, and the auxiliary loss."""
        logits_TE = paddle.matmul(x_TD, self.weight)
        compute = "float64" if logits_TE.dtype == paddle.float64 else "float32"
        probability_TE = F.softmax(logits_TE.astype(compute), axis=-1)
        weight_TK, expert_TK = paddle.topk(probability_TE, self.moe.top_k, axis=-1)
        if self.moe.renormalize:
            weight_TK = weight_TK / weight_TK.sum(axis=-1, keepdim=True)
        experts = logits_TE.shape[-1]
        chosen_E = F.one_hot(expert_TK, experts).astype(compute).sum(axis=1).mean(axis=0)
        aux_loss = experts * (chosen_E * probability_TE.mean(axis=0)).sum()
        return weight_TK.astype(x_TD.dtype), expert_TK, aux_loss
