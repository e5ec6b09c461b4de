"""Log-probabilities of tokens: the model's, before penalties and temperature."""

from __future__ import annotations

import math

import numpy as np

from llmctl.infer.sampling.params import SamplingParams, TokenLogprob

GROUP = 64
"""Logits of a group, of which first only the highest is compared."""


def token_logprob(
    logits_V: np.ndarray, token: int, params: SamplingParams, known: tuple[int, float] | None = None
) -> TokenLogprob | None:
    """The log-probability of a token, with those of the likeliest, as far as the parameters ask for them; None = not at all.

    Args:
        logits_V: Logits.
        token: The token.
        params: Of the request.
        known: A token and its log-probability, if those of any are known.
    """
    if params.logprobs is None:
        return None
    if known is None:
        highest = float(logits_V.max())
        total = highest + math.log(np.exp(logits_V.astype(np.float64) - highest).sum())
    else:
        total = float(logits_V[known[0]]) - known[1]
    top = tuple((int(one), float(logits_V[one]) - total) for one in likeliest(logits_V, params.logprobs))
    return TokenLogprob(token, float(logits_V[token]) - total, top)


def likeliest(logits_V: np.ndarray, count: int) -> np.ndarray:
    """The tokens with the highest logits, the highest first; ties are in the order of ids, as in greedy decoding.

    The highest of each group are compared first: at least ``count`` logits reach the ``count``-th highest of these.
    """
    count, vocab = min(count, len(logits_V)), len(logits_V)
    if count == 0:
        return np.empty(0, np.int64)
    groups = vocab // GROUP
    if count > groups:
        candidates = np.arange(vocab)
    else:
        # The logits of a group are ``groups`` apart, so that maxima of adjacent ones are taken at once.
        highest = logits_V[: groups * GROUP].reshape(GROUP, groups).max(axis=0)
        reach = np.flatnonzero(highest >= np.partition(highest, groups - count)[groups - count])
        within = (reach + np.arange(0, groups * GROUP, groups)[:, None]).ravel()
        candidates = np.concatenate([within, np.arange(groups * GROUP, vocab)])
    return candidates[np.argsort(-logits_V[candidates], kind="stable")[:count]]


def log_softmax(logits_V: np.ndarray) -> np.ndarray:
    """Log-probabilities [V] in float64."""
    shifted_V = logits_V.astype(np.float64) - float(logits_V.max())
    return shifted_V - math.log(np.exp(shifted_V).sum())
