"""Metrics on held-out rows: loss and accuracy of the next token (teacher forcing), and exact match of generated answers.

A row has ``input_ids`` and ``labels`` of equal length; ``labels[t]`` is the token that position t predicts, -100 = no
label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import paddle

NO_LABEL = -100


def label_states(model: Any, arrays: Mapping[str, np.ndarray]) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Hidden states [N, D] at the N positions that have a label, and these labels [N].

    Rows are padded on the right, which a causal mask hides from real positions: the model gets no mask. Rows of
    packed documents come with ``position_ids`` and ``document_end``.
    """
    return at_labels(arrays, hidden_states(model, arrays))


def at_labels(arrays: Mapping[str, np.ndarray], hidden_BTD: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """As ``label_states``, from the hidden states of the batch."""
    where = np.flatnonzero(arrays["labels"] != NO_LABEL)
    hidden_ND = paddle.gather(hidden_BTD.reshape([-1, hidden_BTD.shape[-1]]), paddle.to_tensor(where))
    return hidden_ND, paddle.to_tensor(arrays["labels"].reshape(-1)[where])


def hidden_states(model: Any, arrays: Mapping[str, np.ndarray]) -> paddle.Tensor:
    """Hidden states [B, T, D] of a collated batch, packed or not."""
    ids = paddle.to_tensor(arrays["input_ids"])
    if "document_end" not in arrays:
        return model.hidden_states(ids)
    positions, ends = (paddle.to_tensor(arrays[name]) for name in ("position_ids", "document_end"))
    return model.hidden_states(ids, None, positions, None, ends)


def stage_of(model: Any) -> Any:
    """The ``parallel.stage.Stage`` of a model in stages; None = it has all layers."""
    return getattr(model, "stage", None)


def of_last_stage(
    model: Any, hidden: Callable[[], tuple[Any, ...]], array: Callable[[tuple[Any, ...]], np.ndarray]
) -> np.ndarray:
    """An array that is computed from hidden states. Of a model in stages, all stages call this and get it.

    Args:
        model: The model.
        hidden: Computes what the layers give.
        array: Computes the array from that.
    """
    stage = stage_of(model)
    if stage is None:
        return array(hidden())
    found = stage.forward(hidden)
    shared: np.ndarray = stage.broadcast_array(None if found is None else array(found))
    return shared


def summed(
    model: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    hidden: Callable[[Mapping[str, np.ndarray]], tuple[Any, ...]],
    numbers: Callable[[Mapping[str, np.ndarray], tuple[Any, ...]], Sequence[float]],
    count: int,
) -> list[float]:
    """Sums over batches of numbers that are computed from hidden states, without gradients.

    Args:
        model: The model. Of one in stages, all stages call this, and all get the sums.
        batches: The batches.
        hidden: Computes what the layers give.
        numbers: Computes the numbers from that.
        count: How many numbers there are.
    """
    stage = stage_of(model)
    totals = np.zeros(count)
    with paddle.no_grad():
        for arrays in batches:
            found = hidden(arrays) if stage is None else stage.forward(partial(hidden, arrays))
            if found is not None:
                totals += numbers(arrays, found)
    totals = totals if stage is None else stage.broadcast_array(totals)
    return [float(total) for total in totals]


def token_metrics(model: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """``eval_loss`` (mean over labels, nats), ``perplexity`` and ``accuracy`` (labels that are the most probable token)."""

    def numbers(arrays: Mapping[str, np.ndarray], hidden: tuple[Any, ...]) -> tuple[float, int, int]:
        hidden_ND, labels_N = at_labels(arrays, *hidden)
        return *model.vocabulary.graded(hidden_ND, labels_N), labels_N.shape[0]

    loss, right, count = summed(model, batches, lambda arrays: (hidden_states(model, arrays),), numbers, 3)
    mean = loss / count
    return {"eval_loss": mean, "perplexity": math.exp(min(mean, 700.0)), "accuracy": right / count}


def exact_match(answer: Callable[[Any, Sequence[Any]], Sequence[str]], model: Any, examples: Sequence[Any],
                expected: Sequence[str]) -> float:  # fmt: skip
    """Fraction of the examples whose generated answer equals the expected text, up to surrounding white space."""
    answers = answer(model, examples)
    right = sum(answer.strip() == text.strip() for answer, text in zip(answers, expected, strict=True))
    return right / len(expected)
