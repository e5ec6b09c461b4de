"""Log-probabilities of tokens: the model's, before penalties and temperature."""

from __future__ import annotations

import math

import numpy as np

from llmctl.infer.sampling.params import SamplingParams, TokenLogprob

SPAN = 128
"""Number of adjacent logits that are first compared by their maximum only."""


def token_logprob(
    logits_V: np.ndarray, token: int, params: SamplingParams, logprob: float | None = None
) -> TokenLogprob | None:
    """The log-probability of a token, with those of the likeliest, as far as the parameters ask for them; None = not at all.

    Args:
        logits_V: Logits.
        token: The token.
        params: Of the request.
        logprob: The token's log-probability where it is known.
    """
    if params.logprobs is None:
        return None
    if logprob is None:
        highest = float(logits_V.max())
        total = highest + math.log(np.exp(logits_V.astype(np.float64) - highest).sum())
    else:
        total = float(logits_V[token]) - logprob
    top = tuple((int(one), float(logits_V[one]) - total) for one in likeliest(logits_V, params.logprobs))
    return TokenLogprob(token, float(logits_V[token]) - total, top)


def likeliest(logits_V: np.ndarray, count: int) -> np.ndarray:
    """The tokens with the highest logits, the highest first; ties are in the order of ids, as in greedy decoding.

    The highest of each span are compared first: at least ``count`` logits reach the ``count``-th highest of these.
    """
    count, vocab = min(count, len(logits_V)), len(logits_V)
    if count == 0:
        return np.empty(0, np.int64)
    spans = vocab // SPAN
    if count > spans:
        candidates = np.arange(vocab)
    else:
        highest = logits_V[: spans * SPAN].reshape(spans, SPAN).max(axis=1)
        candidates = np.flatnonzero(logits_V >= np.partition(highest, spans - count)[spans - count])
    return candidates[np.argsort(-logits_V[candidates], kind="stable")[:count]]


def log_softmax(logits_V: np.ndarray) -> np.ndarray:
    """Log-probabilities [V] in float64."""
    shifted_V = logits_V.astype(np.float64) - float(logits_V.max())
    return shifted_V - math.log(np.exp(shifted_V).sum())
