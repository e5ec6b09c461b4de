"""Metrics on held-out rows: loss and accuracy of the next token (teacher forcing), and exact match of generated answers.

A row has ``input_ids`` and ``labels`` of equal length; ``labels[t]`` is the token that position t predicts, -100 = no
label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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


@paddle.no_grad()
def token_metrics(model: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """``eval_loss`` (mean over labels, nats), ``perplexity`` and ``accuracy`` (labels that are the most probable token)."""
    loss, right, count = 0.0, 0, 0
    for arrays in batches:
        hidden_ND, labels_N = label_states(model, arrays)
        found = model.vocabulary.graded(hidden_ND, labels_N)
        loss, right = loss + found[0], right + found[1]
        count += labels_N.shape[0]
    mean = loss / count
    return {"eval_loss": mean, "perplexity": math.exp(min(mean, 700.0)), "accuracy": right / count}


def exact_match(answer: Callable[[Any, Sequence[Any]], Sequence[str]], model: Any, examples: Sequence[Any],
                expected: Sequence[str]) -> float:  # fmt: skip
    """Fraction of the examples whose generated answer equals the expected text, up to surrounding white space."""
    answers = answer(model, examples)
    right = sum(answer.strip() == text.strip() for answer, text in zip(answers, expected, strict=True))
    return right / len(expected)
