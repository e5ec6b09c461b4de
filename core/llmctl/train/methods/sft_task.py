"""Supervised fine-tuning as a task of the loop: the order of examples, batches of encoded rows, the loss on answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from llmctl.train.methods.batch_sampler import Batches, Collate, by_length
from llmctl.train.methods.evaluate import token_metrics
from llmctl.train.methods.loss import next_token_loss
from llmctl.train.task import Batch, Loss


class Row(Protocol):
    """An encoded example: ids, labels already shifted, and the place it comes from."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    source: str


class SftTask:
    """Batches and loss of supervised fine-tuning.

    Args:
        train: Encoded examples to train on, each with at least one label.
        dev: Encoded examples to evaluate on; may be empty.
        collate: Rows -> ``input_ids`` and ``labels``, padded on the right.
        batch_size: Rows of a forward pass.
        grad_accumulation: Forward passes of an update.
        eval_batch_size: Rows of a forward pass in an evaluation.
        seed: Of the order of examples.
        shuffle: Whether each epoch has an order of its own.
        extra_metrics: Further metrics of an evaluation, from the model.
    """

    def __init__(
        self,
        train: Sequence[Row],
        dev: Sequence[Row],
        collate: Collate,
        batch_size: int,
        grad_accumulation: int = 1,
        eval_batch_size: int = 8,
        seed: int = 0,
        shuffle: bool = True,
        extra_metrics: Callable[[Any], dict[str, float]] | None = None,
    ) -> None:
        self._batches = Batches(train, collate, _identity, batch_size, grad_accumulation, seed, shuffle)
        self.steps_per_epoch = self._batches.steps_per_epoch
        self._collate = collate
        # The metrics are sums and do not depend on the order.
        self._dev = by_length(dev, eval_batch_size)
        self._extra_metrics = extra_metrics

    @property
    def fingerprint(self) -> str:
        """Hash of the rows to train on and of how they are divided into updates."""
        return self._batches.fingerprint

    def micro_batches(self, step: int) -> list[Batch]:
        """The rows of update ``step`` (from 1); the last update of an epoch may have fewer."""
        return self._batches.of_step(step)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Sum of the cross entropies of all labels, and their number."""
        return next_token_loss(model, batch.arrays)

    def evaluate(self, model: Any) -> dict[str, float]:
        """Loss, perplexity, accuracy and the further metrics on the rows to evaluate on."""
        if not self._dev:
            return {}
        extra = self._extra_metrics(model) if self._extra_metrics else {}
        return {**token_metrics(model, map(self._collate, self._dev)), **extra}


def _identity(row: Row) -> list[int]:
    return [len(row.input_ids), *row.input_ids, *row.labels]
