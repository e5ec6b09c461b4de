"""The sampler for one row, in numpy: computes where there are no kernels, and is what kernels are compared with."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from llmctl.infer.sampling.rows import NO_SUCH_TOKEN, NONE, NOT_FINITE, NOTHING_LEFT, Float, SamplerInput

Scores = NDArray[np.float64]


def choose_one(logits_V: Float, row: SamplerInput, logprobs: bool = False) -> tuple[int, float, int]:
    """Token, log-probability and status of one row."""
    named = np.concatenate([row.context if row.penalised else NONE, row.excluded])
    if len(named) and (named.min() < 0 or named.max() >= len(logits_V)):
        return -1, 0.0, NO_SUCH_TOKEN
    highest = float(logits_V.max())
    if not math.isfinite(highest):
        return -1, 0.0, NOT_FINITE
    if row.sample or row.penalised or len(row.excluded):
        scores_V = penalise(logits_V.astype(np.float64), row)
        if scores_V.max() == -math.inf:
            return -1, 0.0, NOTHING_LEFT
        if row.sample and scores_V.max() == math.inf:
            return -1, 0.0, NOT_FINITE
        token = _drawn(restrict(scores_V, row), row.draw) if row.sample else int(scores_V.argmax())
    else:
        token = int(logits_V.argmax())
    if not logprobs:
        return token, 0.0, 0
    shifted_V = logits_V.astype(np.float64) - highest
    return token, float(shifted_V[token] - math.log(np.exp(shifted_V).sum())), 0


def penalise(scores_V: Scores, row: SamplerInput) -> Scores:
    """The same scores after the penalties, in place; minus infinity = excluded."""
    if row.penalised and len(row.context):
        seen = np.unique(row.context)
        with np.errstate(over="ignore"):
            scores_V[seen] = np.where(
                scores_V[seen] < 0, scores_V[seen] * row.repetition, scores_V[seen] / row.repetition
            )
    if row.penalised and row.generated:
        answered, count = np.unique(row.context[-row.generated :], return_counts=True)
        scores_V[answered] -= row.presence + row.frequency * count
    scores_V[row.excluded] = -math.inf
    return scores_V


def restrict(scores_V: Scores, row: SamplerInput) -> Scores:
    """Scores divided by the temperature, minus infinity where top-k, top-p or min-p exclude a token.

    Args:
        scores_V: The highest is finite.
        row: One that samples.
    """
    # Relative to the highest score, which stays finite however low the temperature is.
    with np.errstate(over="ignore"):
        scores_V = (scores_V - scores_V.max()) / row.temperature
    if 0 < row.top_k < len(scores_V):
        scores_V[scores_V < np.partition(scores_V, -row.top_k)[-row.top_k]] = -math.inf
    if row.top_p < 1:
        order = np.argsort(scores_V, kind="stable")
        probability = np.exp(scores_V[order] - scores_V.max())
        least = np.cumsum(probability / probability.sum()) <= 1 - row.top_p
        least[-1] = False
        scores_V[order[least]] = -math.inf
    if row.min_p > 0:
        scores_V[scores_V < scores_V.max() + math.log(row.min_p)] = -math.inf
    return scores_V


def _drawn(scores_V: Scores, draw: float) -> int:
    cumulative_V = np.cumsum(np.exp(scores_V - scores_V.max()))
    return int((cumulative_V / cumulative_V[-1]).searchsorted(draw, side="right"))
