"""Losses of preference optimization: pure functions of the log-probabilities of chosen and rejected answers.

The ratio of an answer is its log-probability under the model minus that under the reference, in nats; beta times it is the
answer's reward. Log-probabilities are sums over the tokens of an answer; ``ipo`` alone divides each ratio by the number
of these tokens, as its authors meant it and TRL does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from paddle.nn import functional as F


@dataclass(frozen=True)
class Ratios:
    """Log-ratios (log-probabilities under the model minus those under the reference) of P pairs, and token counts.

    Attributes:
        chosen_P: Of the chosen answers.
        rejected_P: Of the rejected answers.
        chosen_tokens_P: Tokens of the chosen answers.
        rejected_tokens_P: Tokens of the rejected answers.
    """

    chosen_P: Any
    rejected_P: Any
    chosen_tokens_P: Any
    rejected_tokens_P: Any


def sigmoid(ratios: Ratios, beta: float, smoothing: float = 0.0) -> Any:
    """https://arxiv.org/abs/2305.18290, eq. 7; label smoothing is the probability that a label is swapped."""
    margin_P = beta * (ratios.chosen_P - ratios.rejected_P)
    loss_P = -(1 - smoothing) * F.log_sigmoid(margin_P)
    return loss_P - smoothing * F.log_sigmoid(-margin_P) if smoothing else loss_P


def hinge(ratios: Ratios, beta: float) -> Any:
    """https://arxiv.org/abs/2305.10425, with log-ratios instead of log-likelihoods."""
    return F.relu(1 - beta * (ratios.chosen_P - ratios.rejected_P))


def ipo(ratios: Ratios, beta: float) -> Any:
    """https://arxiv.org/abs/2310.12036, eq. 17, with log-ratios averaged over tokens; beta is tau there."""
    margin_P = ratios.chosen_P / ratios.chosen_tokens_P - ratios.rejected_P / ratios.rejected_tokens_P
    return (margin_P - 1 / (2 * beta)) ** 2


def kto_pair(ratios: Ratios, beta: float) -> Any:
    """https://arxiv.org/abs/2402.01306, eq. 7, with the divergence estimated from the pairs of the same forward pass.

    The chosen answers are compared with the divergence of the rejected ones and vice versa; a pair's loss is the mean.
    """
    chosen, rejected = ratios.chosen_P.mean().clip(min=0), ratios.rejected_P.mean().clip(min=0)
    better_P = 1 - F.sigmoid(beta * (ratios.chosen_P - rejected))
    return (better_P + 1 - F.sigmoid(beta * (chosen - ratios.rejected_P))) / 2


def sppo_hard(ratios: Ratios, beta: float) -> Any:
    """https://arxiv.org/abs/2405.00675, eq. 4.7, with a win probability of 1 for the chosen answer."""
    return (ratios.chosen_P - 0.5 / beta) ** 2 + (ratios.rejected_P + 0.5 / beta) ** 2


def nca_pair(ratios: Ratios, beta: float) -> Any:
    """https://arxiv.org/abs/2402.05369, for two answers."""
    chosen_P, rejected_P = beta * ratios.chosen_P, beta * ratios.rejected_P
    return -F.log_sigmoid(chosen_P) - 0.5 * F.log_sigmoid(-chosen_P) - 0.5 * F.log_sigmoid(-rejected_P)


LOSSES: Mapping[str, Callable[..., Any]] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "kto_pair": kto_pair,
    "sppo_hard": sppo_hard,
    "nca_pair": nca_pair,
}
"""(ratios, beta) -> loss of each pair, by the value of ``dpo.loss``; ``sigmoid`` also takes the label smoothing."""


REPORTED = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)
"""Names of ``sums``."""


def sums(chosen_P: Any, rejected_P: Any, ratios: Ratios, beta: float) -> dict[str, Any]:
    """Sums over pairs of the metrics that a run reports besides the loss, by the names of ``REPORTED``.

    Args:
        chosen_P: Log-probabilities of the chosen answers under the model.
        rejected_P: Those of the rejected answers.
        ratios: The ratios.
        beta: A reward is beta times the log-ratio.
    """
    chosen_reward_P, rejected_reward_P = beta * ratios.chosen_P.detach(), beta * ratios.rejected_P.detach()
    right_P = (chosen_reward_P > rejected_reward_P).astype(chosen_reward_P.dtype)
    margin_P = chosen_reward_P - rejected_reward_P
    rows = chosen_reward_P, rejected_reward_P, right_P, margin_P, chosen_P.detach(), rejected_P.detach()
    return {name: value.sum() for name, value in zip(REPORTED, rows, strict=True)}
