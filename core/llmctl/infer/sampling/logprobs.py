"""Log-probabilities of tokens: the model's, before penalties and temperature."""

from __future__ import annotations

import math

import numpy as np

from llmctl.infer.sampling.params import SamplingParams, TokenLogprob


def token_logprob(logits_V: np.ndarray, token: int, params: SamplingParams) -> TokenLogprob | None:
    """The log-probability of a token, with those of the likeliest, as far as the parameters ask for them; None = not at all."""
    if params.logprobs is None:
        return None
    logprob_V = log_softmax(logits_V)
    count = min(params.logprobs, len(logprob_V))
    # Ties are ordered by token id, as in greedy decoding.
    top = np.argsort(-logprob_V, kind="stable")[:count]
    return TokenLogprob(token, float(logprob_V[token]), tuple((int(i), float(logprob_V[i])) for i in top))


def log_softmax(logits_V: np.ndarray) -> np.ndarray:
    """Log-probabilities [V] in float64."""
    shifted_V = logits_V.astype(np.float64) - float(logits_V.max())
    return shifted_V - math.log(np.exp(shifted_V).sum())
