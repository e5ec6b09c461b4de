"""The next token of one sequence, and its scores, by the parameters of its request."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from llmctl.infer.sampling.params import BrokenLogitsError, SamplingParams
from llmctl.infer.sampling.reference import choose_one, penalise
from llmctl.infer.sampling.rows import FAULTS, NOT_FINITE, sampler_input

PENALISED_AWAY = "the highest logit is not finite after the penalties"


def generator_for(params: SamplingParams, index: int) -> np.random.Generator:
    """The random numbers of a prompt, by its index among all prompts; they do not depend on the batch."""
    return np.random.default_rng([params.seed, index])


def choose(
    logits_V: np.ndarray,
    context: Sequence[int],
    generated: int,
    params: SamplingParams,
    end_ids: Collection[int],
    draws: np.random.Generator,
) -> int:
    """The next token.

    Args:
        logits_V: Logits of the vocabulary.
        context: Prompt and answer so far.
        generated: Number of tokens of the answer so far.
        params: How to choose.
        end_ids: Tokens that end an answer.
        draws: Random generator; each sampled token uses one number.

    Raises:
        BrokenLogitsError: A score is NaN or infinite, or a penalty makes it so, or none is finite; or a token that is
            penalised or excluded is not in the vocabulary.
    """
    draw = draws.random() if params.sample else 0.0
    token, _, status = choose_one(logits_V, sampler_input(params, context, generated, end_ids, draw))
    if status == NOT_FINITE:
        check_finite(logits_V)
        raise BrokenLogitsError(PENALISED_AWAY)
    if status:
        raise BrokenLogitsError(FAULTS[status])
    return token


def check_finite(logits_V: np.ndarray) -> None:
    """Checks that a token can be chosen; minus infinity excludes one.

    Raises:
        BrokenLogitsError: A logit is NaN or infinite, or none is finite.
    """
    highest = float(logits_V.max())
    if not math.isfinite(highest):
        raise BrokenLogitsError(f"the highest logit is not finite: {highest}")


def penalised(
    logits_V: np.ndarray,
    context: Sequence[int],
    generated: int,
    params: SamplingParams,
    end_ids: Collection[int],
) -> np.ndarray:
    """Scores [V] in float64 after the penalties and the minimum length."""
    return penalise(logits_V.astype(np.float64), sampler_input(params, context, generated, end_ids))
