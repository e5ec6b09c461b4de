"""Supervised fine-tuning as a task of the loop: the order of examples, batches of encoded rows, the loss on answers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from llmctl.train.evaluate import token_metrics
from llmctl.train.objective import next_token_loss
from llmctl.train.task import Batch

Collate = Callable[[Sequence[Any]], Mapping[str, np.ndarray]]


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
        self.train, self.collate, self.seed, self.shuffle = train, collate, seed, shuffle
        self.batch_size, self.rows_per_step = batch_size, batch_size * grad_accumulation
        self.steps_per_epoch = math.ceil(len(train) / self.rows_per_step)
        # Rows of like length together need less padding; the metrics are sums and do not depend on the order.
        self._dev = sorted(dev, key=lambda row: len(row.input_ids))
        self._eval_batch_size = eval_batch_size
        self._extra_metrics = extra_metrics
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    @property
    def fingerprint(self) -> str:
        """Hash of the rows to train on and of how they are divided into updates."""
        digest = hashlib.sha256(repr((self.batch_size, self.rows_per_step, self.shuffle)).encode())
        for row in self.train:
            digest.update(np.asarray([len(row.input_ids), *row.input_ids, *row.labels], np.int64).tobytes())
        return digest.hexdigest()[:32]

    def micro_batches(self, step: int) -> list[Batch]:
        """The rows of update ``step`` (from 1); the last update of an epoch may have fewer."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        chosen = self._epoch_order(epoch)[index * self.rows_per_step : (index + 1) * self.rows_per_step]
        rows = sorted((self.train[i] for i in chosen), key=lambda row: len(row.input_ids))
        return [self._batch(rows[i : i + self.batch_size]) for i in range(0, len(rows), self.batch_size)]

    def loss(self, model: Any, batch: Batch) -> tuple[Any, int]:
        """Sum of the cross entropies of all labels, and their number."""
        return next_token_loss(model, batch.arrays)

    def evaluate(self, model: Any) -> dict[str, float]:
        """Loss, perplexity, accuracy and the further metrics on the rows to evaluate on."""
        if not self._dev:
            return {}
        extra = self._extra_metrics(model) if self._extra_metrics else {}
        return {**token_metrics(model, self._dev_batches()), **extra}

    def _dev_batches(self) -> Iterator[Mapping[str, np.ndarray]]:
        for start in range(0, len(self._dev), self._eval_batch_size):
            yield self.collate(self._dev[start : start + self._eval_batch_size])

    def _batch(self, rows: Sequence[Row]) -> Batch:
        tokens = sum(len(row.input_ids) for row in rows)
        return Batch(self.collate(rows), [row.source for row in rows], tokens)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            count = len(self.train)
            order = np.random.default_rng([self.seed, epoch]).permutation(count) if self.shuffle else np.arange(count)
            self._order = (epoch, order)
        return self._order[1]
