"""A vocabulary whose rows are divided among the ranks of an axis, in shares that need not be equal.

No rank ever holds the logits of all tokens in training: a loss takes the largest logit, the sum of exponentials and the
label's logit from all ranks, three numbers a token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
from paddle.autograd import PyLayer

from llmctl.nn.loss import wide
from llmctl.nn.vocabulary import Vocabulary
from llmctl.parallel.axis import Axis
from llmctl.parallel.collectives import Enter, Join, Leave, all_gather, all_reduce

LAST = -1


class SplitVocabulary(Vocabulary):
    """The output head of a model that holds the rows of some tokens.

    Args:
        scores: Hidden states to logits of this rank's tokens.
        shares: The tokens of each rank, in order.
        axis: The ranks.
    """

    def __init__(self, scores: Callable[[paddle.Tensor], paddle.Tensor], shares: list[range], axis: Axis) -> None:
        super().__init__(lambda hidden: scores(Enter.apply(hidden, axis)))
        self._shares, self._axis, self._first = shares, axis, shares[axis.rank].start

    def logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Logits over the vocabulary, on every rank, for hidden states of any leading shape."""
        own, most = self.scores(hidden), max(map(len, self._shares))
        if own.shape[-1] < most:
            missing = paddle.zeros([*own.shape[:-1], most - own.shape[-1]], own.dtype)
            own = paddle.concat([own, missing], axis=LAST)
        padded = Join.apply(own, self._axis, LAST)
        if all(len(share) == most for share in self._shares):
            return padded
        starts = (rank * most for rank in range(len(self._shares)))
        parts = [padded[..., s : s + len(share)] for s, share in zip(starts, self._shares, strict=True)]
        return paddle.concat(parts, axis=LAST)

    def loss(self, hidden_ND: paddle.Tensor, labels_N: paddle.Tensor) -> paddle.Tensor:
        """Sum of the cross entropies of N tokens, a scalar, the same on every rank."""
        return self._losses(self.scores(hidden_ND), labels_N).sum()

    def log_probs(self, hidden_ND: paddle.Tensor, labels_N: paddle.Tensor) -> paddle.Tensor:
        """Log-probability of each of N tokens [N], in nats, the same on every rank."""
        return -self._losses(self.scores(hidden_ND), labels_N)

    @paddle.no_grad()
    def graded(self, hidden_ND: paddle.Tensor, labels_N: paddle.Tensor) -> tuple[float, int]:
        """The sum of the cross entropies of N tokens, and how many of them are the most probable one."""
        logits_NV = self.scores(hidden_ND)
        best_N1 = logits_NV.argmax(axis=LAST, keepdim=True)
        top_NR = all_gather(paddle.take_along_axis(logits_NV, best_N1, axis=LAST), self._axis, LAST)
        token_NR = all_gather(best_N1 + self._first, self._axis, LAST)
        # Of equal logits the first token counts, as where one process has them all.
        token_N = paddle.take_along_axis(token_NR, top_NR.argmax(axis=LAST, keepdim=True), axis=LAST).squeeze(LAST)
        return float(self._losses(logits_NV, labels_N).sum()), int((token_N == labels_N).sum())

    def _losses(self, logits_NV: paddle.Tensor, labels_N: paddle.Tensor) -> paddle.Tensor:
        return _CrossEntropy.apply(wide(logits_NV), labels_N - self._first, self._axis)


class _CrossEntropy(PyLayer):
    """Cross entropies [N] from the logits [N, V] of this rank's tokens; a label out of [0, V) is another rank's."""

    @staticmethod
    def forward(ctx: Any, logits_NV: paddle.Tensor, labels_N: paddle.Tensor, axis: Axis) -> paddle.Tensor:
        top_N1 = all_reduce(logits_NV.max(axis=LAST, keepdim=True), axis, "max")
        held_N1 = paddle.logical_and(labels_N >= 0, labels_N < logits_NV.shape[-1]).unsqueeze(LAST)
        label_N1 = labels_N.clip(0, logits_NV.shape[-1] - 1).unsqueeze(LAST)
        held_N1 = held_N1.astype(logits_NV.dtype)
        shifted_NV = logits_NV - top_N1
        chosen_N1 = paddle.take_along_axis(shifted_NV, label_N1, axis=LAST) * held_N1
        power_NV = shifted_NV.exp_()
        sums_N2 = paddle.concat([power_NV.sum(axis=LAST, keepdim=True), chosen_N1], axis=LAST)
        total_N1, chosen_N1 = paddle.split(all_reduce(sums_N2, axis), 2, axis=LAST)
        ctx.save_for_backward(power_NV.divide_(total_N1), label_N1, held_N1)
        return (total_N1.log() - chosen_N1).squeeze(LAST)

    @staticmethod
    def backward(ctx: Any, grad_N: paddle.Tensor) -> tuple[paddle.Tensor, None]:
        probability_NV, label_N1, held_N1 = ctx.saved_tensor()
        grad_N1 = grad_N.unsqueeze(LAST)
        grad_NV = probability_NV * grad_N1
        return paddle.put_along_axis(grad_NV, label_N1, -held_N1 * grad_N1, axis=LAST, reduce="add"), None


def divide_embedding(table: paddle.nn.Layer, share: range, axis: Axis) -> None:
    """Makes an embedding that holds the rows of some tokens return those of any, in place.

    Args:
        table: The layer, with a ``weight`` of the rank's rows.
        share: The tokens of the rank.
        axis: The ranks.
    """

    def forward(ids: paddle.Tensor) -> paddle.Tensor:
        place = ids - share.start
        held = paddle.logical_and(place >= 0, place < len(share)).astype(table.weight.dtype).unsqueeze(LAST)
        rows = paddle.nn.functional.embedding(place.clip(0, len(share) - 1), table.weight)
        return Leave.apply(rows * held, axis)

    table.forward = forward
