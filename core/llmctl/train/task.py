"""What the loop asks of a training method: batches, a loss, an evaluation."""

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
        arrays: Inputs of the loss, by name; the first axis is the rows.
        sources: Origin of each row, such as ``train.jsonl:12``.
        tokens: Number of tokens that are not padding.
    """

    arrays: Mapping[str, np.ndarray]
    sources: Sequence[str]
    tokens: int


class Loss(NamedTuple):
    """The loss of a batch.

    Attributes:
        total: A scalar with a gradient: the sum over items (label tokens, pairs).
        items: Number of items.
        sums: Further sums over items, by name, whose means are reported.
    """

    total: Any
    items: int
    sums: Mapping[str, Any] = MappingProxyType({})


class Task(Protocol):
    """What is trained on. Everything is a pure function of the step, so that a run can be resumed at any step."""

    @property
    def reported(self) -> Sequence[str]:
        """Names of the ``sums`` of its losses, in the order in which they are reported."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""

    @property
    def fingerprint(self) -> str:
        """Changes when the data, its order or the batch size changes: a run is then not resumed."""

    def micro_batches(self, step: int) -> Sequence[Batch]:
        """The batches whose gradients are accumulated in a step; steps count from 1."""

    def hidden(self, model: Any, batch: Batch) -> tuple[Any, ...]:
        """What the loss needs of the layers of the model: hidden states, and sums over layers."""

    def loss(self, model: Any, batch: Batch, hidden: tuple[Any, ...]) -> Loss:
        """The loss of a batch. The loop divides the gradient by the number of items of the whole step.

        Args:
            model: The model, of which only the output head is used.
            batch: The batch.
            hidden: What ``hidden`` returned for it.
        """

    def evaluate(self, model: Any) -> dict[str, float]:
        """Metrics on held-out data by name; empty when there is none."""
