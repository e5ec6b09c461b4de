"""The task of preference optimization: log-probabilities of answers, the loss of pairs, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import paddle

from llmctl.data.lazy_rows import by_length
from llmctl.data.preference.rows import PairRow
from llmctl.io.progress import tracked
from llmctl.train.methods.batch_sampler import Collate
from llmctl.train.methods.dpo_loss import REPORTED, Ratios, sums
from llmctl.train.methods.evaluate import hidden_states, summed
from llmctl.train.methods.examples import ExamplesTask
from llmctl.train.methods.loss import auxiliary_sums, with_auxiliary
from llmctl.train.task import Batch, Loss


class Reference(Protocol):
    """The reference that log-probabilities of the model are compared with.

    Attributes:
        states: Number of tensors that ``hidden`` returns.
    """

    states: int

    def hidden(self, arrays: Mapping[str, np.ndarray], training: bool) -> tuple[Any, ...]:
        """Hidden states of a batch, without gradients; none where the reference is not a model.

        Args:
            arrays: The batch.
            training: Whether the model is in training mode, in which some families compute positions differently.
        """

    def log_probs(self, arrays: Mapping[str, np.ndarray], training: bool, hidden: Sequence[Any]) -> Any:
        """Log-probabilities of the answers of a batch [2P], chosen and rejected in turn, without gradients.

        Args:
            arrays: The batch.
            training: As in ``hidden``.
            hidden: What ``hidden`` returned.
        """


def answer_log_probs(model: Any, arrays: Mapping[str, np.ndarray], hidden_BTD: Any = None) -> paddle.Tensor:
    """Log-probability of each answer of collated pairs [2P], chosen and rejected in turn: sums over its tokens.

    Args:
        model: The model.
        arrays: The pairs.
        hidden_BTD: Their hidden states; None = they are computed.
    """
    if hidden_BTD is None:
        hidden_BTD = hidden_states(model, arrays)
    hidden_ND = paddle.gather(hidden_BTD.reshape([-1, hidden_BTD.shape[-1]]), paddle.to_tensor(arrays["column"]))
    log_prob_N = model.vocabulary.log_probs(hidden_ND, paddle.to_tensor(arrays["token"]))
    belongs_AN = arrays["answer"] == np.arange(2 * len(arrays["pair"]))[:, None]
    return paddle.matmul(paddle.to_tensor(belongs_AN).astype(log_prob_N.dtype), log_prob_N)


class DpoTask(ExamplesTask):
    """Batches and loss of preference optimization.

    Args:
        train: Rows to train on.
        dev: Rows to evaluate on; may be empty.
        collate: Rows -> arrays, as ``data.preference.rows`` does.
        loss: Ratios -> loss of each pair.
        beta: A reward is beta times the log-ratio.
        batch_size: Rows of a forward pass.
        grad_accumulation: Forward passes of a step.
        **sampling: Further arguments of an ``ExamplesTask``.

    Attributes:
        reference: The reference; set before the first loss.
    """

    reference: Reference
    reported = REPORTED

    def __init__(
        self,
        train: Sequence[PairRow],
        dev: Sequence[PairRow],
        collate: Collate,
        loss: Callable[[Ratios], Any],
        beta: float,
        batch_size: int,
        grad_accumulation: int = 1,
        **sampling: Any,
    ) -> None:
        super().__init__(train, dev, collate, identity, batch_size, grad_accumulation, **sampling)
        self._loss, self._beta = loss, beta

    def hidden(self, model: Any, batch: Batch) -> tuple[Any, ...]:
        """Hidden states of the reference and of the model, and the sums for an auxiliary loss of the model."""
        return self._hidden(model, batch.arrays)

    def loss(self, model: Any, batch: Batch, hidden: tuple[Any, ...]) -> Loss:
        """Sum of the losses of all pairs, their number, and sums of the metrics of ``dpo_loss.sums``.

        An auxiliary loss of the model counts per pair.
        """
        losses_P, reported, sums = self._pairs(model, batch.arrays, hidden)
        count = losses_P.shape[0]
        return Loss(with_auxiliary(model, losses_P.sum(), count, sums), count, reported)

    def evaluate(self, model: Any) -> dict[str, float]:
        """Means of the loss and of the metrics over the dev pairs; empty without dev pairs."""
        if not self.dev:
            return {}

        def numbers(arrays: Mapping[str, np.ndarray], hidden: tuple[Any, ...]) -> list[float]:
            losses_P, reported, _ = self._pairs(model, arrays, hidden)
            values = losses_P.sum(), *(reported[name] for name in self.reported)
            return [losses_P.shape[0], *(float(value) for value in values)]

        rows = by_length(self.dev, self.eval_batch_size)
        batches = map(self.collate, tracked(rows, "evaluating", -(-len(self.dev) // self.eval_batch_size)))
        names = "eval_loss", *self.reported
        count, *totals = summed(model, batches, lambda arrays: self._hidden(model, arrays), numbers, 1 + len(names))
        return {name: total / count for name, total in zip(names, totals, strict=True)}

    def _hidden(self, model: Any, arrays: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
        # The reference goes first: it may be the same layers, which keep the router scores of an auxiliary loss.
        reference = self.reference.hidden(arrays, model.training)
        return *reference, hidden_states(model, arrays), *auxiliary_sums(model, arrays)

    def _pairs(
        self, model: Any, arrays: Mapping[str, np.ndarray], hidden: tuple[Any, ...]
    ) -> tuple[Any, dict[str, Any], Sequence[Any]]:
        """Losses of the pairs of a batch, sums of their metrics, and the sums for an auxiliary loss."""
        states = self.reference.states
        hidden_BTD, *auxiliary = hidden[states:]
        reference_A = self.reference.log_probs(arrays, model.training, hidden[:states])
        log_prob_A = answer_log_probs(model, arrays, hidden_BTD)
        ratio_P2 = (log_prob_A - reference_A).reshape([-1, 2])
        tokens_A = np.bincount(arrays["answer"], minlength=log_prob_A.shape[0])
        tokens_P2 = paddle.to_tensor(tokens_A.reshape(-1, 2)).astype(log_prob_A.dtype)
        ratios = Ratios(ratio_P2[:, 0], ratio_P2[:, 1], tokens_P2[:, 0], tokens_P2[:, 1])
        log_prob_P2 = log_prob_A.reshape([-1, 2])
        reported = sums(log_prob_P2[:, 0], log_prob_P2[:, 1], ratios, self._beta)
        return self._loss(ratios), reported, auxiliary


def identity(row: PairRow) -> list[int]:
    """Integers that identify the content of a row of pairs."""
    lengths = [len(row.input_ids), len(row.token)]
    return [*lengths, *row.input_ids, *row.packed.position_ids, *row.packed.ends, *row.column, *row.token, *row.answer]
