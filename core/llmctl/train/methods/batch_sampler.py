"""The order of rows over epochs, and their batches of each step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llmctl.data.lazy_rows import Identity, LazyRows
from llmctl.data.mixing import Mixture
from llmctl.train.task import Batch

Collate = Callable[[Sequence[Any]], Mapping[str, np.ndarray]]


class BatchSampler:
    """Batches of rows; each row has ``input_ids`` and ``source``.

    Args:
        rows: All rows to train on.
        collate: Rows -> arrays.
        identity: Integers that identify the content of a row, where the rows have no digest.
        batch_size: Rows of a forward pass.
        grad_accumulation: Forward passes of a step.
        seed: Seed of the shuffling.
        shuffle: Whether each epoch is shuffled.
        mixture: Which rows an epoch has; None = all.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        collate: Collate,
        identity: Identity,
        batch_size: int,
        grad_accumulation: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        mixture: Mixture | None = None,
    ) -> None:
        self.rows, self._collate = LazyRows.of(rows, identity), collate
        self._batch_size, self._rows_per_step = batch_size, batch_size * grad_accumulation
        self._seed, self._shuffle, self._mixture = seed, shuffle, mixture or Mixture([len(rows)])
        self.steps_per_epoch = math.ceil(len(rows) / self._rows_per_step)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    @property
    def fingerprint(self) -> str:
        """Hash of the rows and of their division into steps."""
        mixed = [*zip(self._mixture.sizes, self._mixture.weights, strict=True)] if self._mixture.weights else []
        settings = (self._batch_size, self._rows_per_step, self._shuffle, *mixed)
        return hashlib.sha256((repr(settings) + self.rows.digest).encode()).hexdigest()[:32]

    def micro_batches(self, step: int) -> list[Batch]:
        """The batches of a step, from 1; the last step of an epoch may have fewer rows."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        chosen = self._epoch_order(epoch)[index * self._rows_per_step : (index + 1) * self._rows_per_step]
        rows = sorted((self.rows[int(i)] for i in chosen), key=lambda row: len(row.input_ids))
        return [self._batch(rows[i : i + self._batch_size]) for i in range(0, len(rows), self._batch_size)]

    def _batch(self, rows: Sequence[Any]) -> Batch:
        tokens = sum(len(row.input_ids) for row in rows)
        return Batch(self._collate(rows), [row.source for row in rows], tokens)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            self._order = (epoch, self._mixture.epoch(epoch, self._seed, self._shuffle))
        return self._order[1]
