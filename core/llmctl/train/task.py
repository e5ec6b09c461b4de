"""What the loop asks of a method: batches, a loss, an evaluation. Supervised fine-tuning's answer is in ``sft_task``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True)
class Batch:
    """Rows for one forward pass.

    Attributes:
        arrays: What the task's loss needs, by name; the first axis is the rows.
        sources: Where each row comes from, such as ``train.jsonl:12``.
        tokens: Number of tokens that are not padding.
    """

    arrays: Mapping[str, np.ndarray]
    sources: Sequence[str]
    tokens: int


class Loss(NamedTuple):
    """The loss of a batch.

    Attributes:
        total: A scalar with a gradient: a sum over items (label tokens, pairs).
        items: How many they are.
        sums: Further sums over items, by name, whose means are reported.
    """

    total: Any
    items: int
    sums: Mapping[str, Any] = MappingProxyType({})


class Task(Protocol):
    """A method of training. Everything is a pure function of the step, so that any step can be resumed at."""

    @property
    def steps_per_epoch(self) -> int:
        """Updates in one pass over the data."""

    @property
    def fingerprint(self) -> str:
        """Changes when the data, its order or the size of a step changes: checkpoints then do not fit."""

    def micro_batches(self, step: int) -> Sequence[Batch]:
        """The batches whose gradients are summed in this update; updates count from 1."""

    def loss(self, model: Any, batch: Batch) -> Loss:
        """The loss of a batch. The loop divides the gradient by the number of items of the whole update."""

    def evaluate(self, model: Any) -> dict[str, float]:
        """Metrics on held-out data by name; empty when there is none."""
