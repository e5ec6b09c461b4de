"""What is asked of the scores over the vocabulary; where it is divided among ranks, ``parallel.vocabulary`` answers."""

from __future__ import annotations

from collections.abc import Callable

import paddle

from llmctl.nn.loss import token_log_probs, token_loss


class Vocabulary:
    """The output head of a model that holds all of the vocabulary.

    Shape suffixes as in the package's docstring; N counts tokens.

    Args:
        scores: Hidden states of any leading shape to logits.
    """

    def __init__(self, scores: Callable[[paddle.Tensor], paddle.Tensor]) -> None:
        self.scores = scores

    def logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Logits over the vocabulary, for hidden states of any leading shape."""
        return self.scores(hidden)

    def loss(self, hidden_ND: paddle.Tensor, labels_N: paddle.Tensor) -> paddle.Tensor:
        """Sum of the cross entropies of N tokens, a scalar."""
        return token_loss(self.scores(hidden_ND), labels_N, overwrite=True)

    def log_probs(self, hidden_ND: paddle.Tensor, labels_N: paddle.Tensor) -> paddle.Tensor:
        """Log-probability of each of N tokens [N], in nats."""
        return token_log_probs(self.scores(hidden_ND), labels_N)

    @paddle.no_grad()
    def graded(self, hidden_ND: paddle.Tensor, labels_N: paddle.Tensor) -> tuple[float, int]:
        """The sum of the cross entropies of N tokens, and how many of them are the most probable one."""
        logits_NV = self.scores(hidden_ND)
        right = (logits_NV.argmax(axis=-1) == labels_N).sum()
        return float(token_loss(logits_NV, labels_N)), int(right)
