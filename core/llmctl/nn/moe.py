"""A mixture of experts as a feed-forward layer, and its router.

Shape suffixes: T tokens, D hidden, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F
from paddle.nn.initializer import Normal

from llmctl.card.family import Moe


class SparseMLP(paddle.nn.Layer):
    """The weighted sum of the outputs of each token's experts; an expert computes only the tokens routed to it.

    Args:
        gate: The router, x_TD -> (weight_TK, expert_TK), as ``SoftmaxTopK``.
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
        outputs = self.run_experts(paddle.gather(x_TD, slots // choices), counts)
        back = paddle.to_tensor(inverse(order), dtype="int64")
        routed_TKD = paddle.gather(outputs, back).reshape([-1, choices, x_TD.shape[-1]])
        mixed_TD = paddle.matmul(weight_TK.unsqueeze(1), routed_TKD).squeeze(1)
        return mixed_TD.reshape(x_BTD.shape)

    def run_experts(self, rows: paddle.Tensor, counts: np.ndarray) -> paddle.Tensor:
        """The outputs of the experts.

        Args:
            rows: Inputs [sum(counts), D], those of the first expert first.
            counts: Number of rows of each expert; not all are 0.
        """
        parts = zip(np.flatnonzero(counts), paddle.split(rows, counts[counts > 0].tolist()), strict=True)
        return paddle.concat([self.experts[expert](part) for expert, part in parts])

    def _traced(self, x_TD: paddle.Tensor, weight_TK: paddle.Tensor, expert_TK: paddle.Tensor) -> paddle.Tensor:
        """The same as operators of a program, which runs every expert, some on no tokens."""
        mixed_TD = paddle.zeros_like(x_TD)
        for index, expert in enumerate(self.experts):
            chosen_TK = (expert_TK == index).astype(weight_TK.dtype)
            weight_T1 = (weight_TK * chosen_TK).sum(axis=-1, keepdim=True)
            rows = paddle.nonzero(chosen_TK.sum(axis=-1) > 0)
            part = expert(paddle.gather_nd(x_TD, rows)) * paddle.gather_nd(weight_T1, rows)
            mixed_TD = paddle.scatter_nd_add(mixed_TD, rows, part)
        return mixed_TD


def inverse(order: np.ndarray) -> np.ndarray:
    """The permutation that undoes another."""
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return back


class SoftmaxTopK(nn.Layer):
    """Router: softmax over all experts in float32 or better, the top K of them, renormalized if the card says so.

    In training ``logits_TE`` holds the router logits of the last forward, for ``router_sums``.

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


def router_sums(
    logits: Sequence[paddle.Tensor], top_k: int, mask_BS: paddle.Tensor | None = None
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Sums over tokens and layers, for ``balancing_loss``: how often each expert was chosen [E], and its probability [E].

    Args:
        logits: Router logits [B*S, E] of each layer.
        top_k: K.
        mask_BS: 0 = padding, which does not count; None = all tokens count.
    """
    probability_TE = _probabilities(paddle.concat(list(logits)))
    _, expert_TK = paddle.topk(probability_TE, top_k, axis=-1)
    chosen_TE = F.one_hot(expert_TK, probability_TE.shape[-1]).astype(probability_TE.dtype).sum(axis=1)
    if mask_BS is None:
        return chosen_TE.sum(axis=0), probability_TE.sum(axis=0)
    count_T = paddle.tile(mask_BS.reshape([-1]).astype(chosen_TE.dtype), [len(logits)])
    return paddle.matmul(count_T, chosen_TE), paddle.matmul(count_T, probability_TE)


def balancing_loss(chosen_E: paddle.Tensor, probability_E: paddle.Tensor) -> paddle.Tensor:
    """E x sum over experts of (fraction of tokens routed to it) x (mean router probability of it).

    The means are over the tokens of all layers together (https://arxiv.org/abs/2101.03961, section 2.2, for K choices).

    Args:
        chosen_E: How often each expert was chosen, over all layers, as ``router_sums`` returns it.
        probability_E: Sums of its probabilities; those of a token are 1 together.
    """
    tokens = probability_E.detach().sum()
    return chosen_E.shape[0] * (chosen_E / tokens * (probability_E / tokens)).sum()


def _probabilities(logits_TE: paddle.Tensor) -> paddle.Tensor:
    compute = "float64" if logits_TE.dtype == paddle.float64 else "float32"
    return F.softmax(logits_TE.astype(compute), axis=-1)
