"""Routing of tokens to experts, and the loss that balances it.

Shape legend: T tokens, D hidden, E experts, K experts per token, B and S rows and columns of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import nn
from paddle.nn import functional as F
from paddle.nn.initializer import Normal

from llmctl.card.family import Moe


class SoftmaxTopK(nn.Layer):
    """Softmax over all experts in float32 or better, the best K of them, renormalised where the card says so.

    In training ``logits_TE`` holds the scores of the last forward, for ``load_balance``.

    Args:
        hidden: D.
        experts: E.
        moe: The card's routing.
        std: Standard deviation of the initial weights.
    """

    def __init__(self, hidden: int, experts: int, moe: Moe, std: float = 0.02) -> None:
        super().__init__()
        if moe.router != "softmax-topk":
            raise ValueError(f"router={moe.router!r} is unknown; known: 'softmax-topk'")
        if not 1 <= moe.top_k <= experts:
            raise ValueError(f"top_k={moe.top_k} must be between 1 and experts={experts}")
        self.moe = moe
        self.weight = self.create_parameter([hidden, experts], default_initializer=Normal(0.0, std))
        self.logits_TE: paddle.Tensor | None = None

    def forward(self, x_TD: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Weights [T, K] in the type of x, and experts [T, K] as whole numbers."""
        logits_TE = paddle.matmul(x_TD, self.weight)
        self.logits_TE = logits_TE if self.training else None
        weight_TK, expert_TK = paddle.topk(_probabilities(logits_TE), self.moe.top_k, axis=-1)
        if self.moe.renormalize:
            weight_TK = weight_TK / weight_TK.sum(axis=-1, keepdim=True)
        return weight_TK.astype(x_TD.dtype), expert_TK


def load_balance(logits: Sequence[paddle.Tensor], top_k: int, mask_BS: paddle.Tensor | None = None) -> paddle.Tensor:
    """experts x sum over experts of (mean choices of the expert) x (mean probability of the expert).

    The means run over the tokens of all layers together (https://arxiv.org/abs/2101.03961, section 2.2, for K choices).

    Args:
        logits: Router scores [B*S, E] of each layer.
        top_k: K.
        mask_BS: 0 = a token that does not count; None = all count.
    """
    probability_TE = _probabilities(paddle.concat(list(logits)))
    experts = probability_TE.shape[-1]
    _, expert_TK = paddle.topk(probability_TE, top_k, axis=-1)
    chosen_TE = F.one_hot(expert_TK, experts).astype(probability_TE.dtype).sum(axis=1)
    count = paddle.ones([1, probability_TE.shape[0]], probability_TE.dtype)
    if mask_BS is not None:
        count = paddle.tile(mask_BS.reshape([1, -1]).astype(count.dtype), [1, len(logits)])
    weight_1T = count / count.sum()
    return experts * (paddle.matmul(weight_1T, chosen_TE) * paddle.matmul(weight_1T, probability_TE)).sum()


def _probabilities(logits_TE: paddle.Tensor) -> paddle.Tensor:
    compute = "float64" if logits_TE.dtype == paddle.float64 else "float32"
    return F.softmax(logits_TE.astype(compute), axis=-1)
