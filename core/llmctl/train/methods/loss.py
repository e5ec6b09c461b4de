"""The language-modelling loss: the next token, at the positions that have a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmctl.train.methods.evaluate import at_labels, hidden_states
from llmctl.train.task import Loss


def next_token_hidden(model: Any, arrays: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    """Hidden states [B, T, D], and the sums for the model's auxiliary loss if it has one."""
    return hidden_states(model, arrays), *auxiliary_sums(model, arrays)


def next_token_loss(model: Any, arrays: Mapping[str, np.ndarray], hidden: tuple[Any, ...] | None = None) -> Loss:
    """Sum of the cross entropies of all labels, and their number; an auxiliary loss of the model counts per label.

    Args:
        model: The model.
        arrays: The batch.
        hidden: What ``next_token_hidden`` returned for it; None = it is computed.
    """
    hidden_BTD, *sums = next_token_hidden(model, arrays) if hidden is None else hidden
    hidden_ND, labels_N = at_labels(arrays, hidden_BTD)
    total, count = model.vocabulary.loss(hidden_ND, labels_N), labels_N.shape[0]
    return Loss(with_auxiliary(model, total, count, sums), count)


def auxiliary_sums(model: Any, arrays: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    """What the model's auxiliary loss needs of its last forward; empty where it has none."""
    sums: tuple[Any, ...] = getattr(model, "auxiliary_sums", lambda arrays: ())(arrays)
    return sums


def with_auxiliary(model: Any, total: Any, count: int, sums: Sequence[Any]) -> Any:
    """A sum over items, plus the model's auxiliary loss for each of them."""
    return total + model.auxiliary_loss(sums) * count if sums else total
