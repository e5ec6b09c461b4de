"""Log-probabilities of given tokens, computed by a layer or program some positions at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmctl.infer.eager.generate import as_model
from llmctl.infer.request import Generation
from llmctl.infer.sampling import BrokenLogitsError, TokenLogprob
from llmctl.infer.sampling.logprobs import log_softmax
from llmctl.infer.sampling.single import check_finite

CHUNK = 128
"""Tokens whose logits are in memory at a time."""


def score(
    model: Any, ids: Sequence[int], first: int, on_logits: Callable[[int, Any], None] | None = None
) -> Generation:
    """The log-probabilities of ``ids[first:]``, each given all tokens before it, as ``logprobs`` of an answer without tokens.

    Args:
        model: As for ``generate.generate``.
        ids: The tokens.
        first: Index of the first token that is scored, at least 1.
        on_logits: Called with the index of each scored token and the logits [V] that predict it.
    """
    model = as_model(model)
    # Where frequencies depend on the length, the whole sequence is computed at once with those of its length.
    whole = model.max_stable_length is not None and len(ids) > model.max_stable_length
    ids_1T, inputs = np.asarray([list(ids)], np.int64), len(ids) if whole else len(ids) - 1
    steps = model.begin(len(ids), not whole)
    scores: list[TokenLogprob] = []
    start = 0
    while start < inputs:
        stop = inputs if whole else min(inputs, max(first, start + CHUNK))
        logits_TV = steps.all_logits(ids_1T[:, start:stop], np.ones((1, stop), np.int64))[0]
        for position in range(max(start, first - 1), min(stop, len(ids) - 1)):
            try:
                check_finite(logits_TV[position - start])
            except BrokenLogitsError as error:
                return Generation([], "error", str(error), scores)
            token = int(ids[position + 1])
            if on_logits:
                on_logits(position + 1, logits_TV[position - start])
            scores.append(TokenLogprob(token, float(log_softmax(logits_TV[position - start])[token])))
        start = stop
    return Generation([], "scored", logprobs=scores)
