"""Choosing tokens from many rows of logits at once: by a compiled kernel if there is one, otherwise in numpy.

Biases and the tokens that a constraint allows come first. Then the order is that of transformers' logits processors: repetition penalty, presence and frequency penalty, excluded tokens,
temperature, top-k, top-p, min-p, then a draw. All in double precision. No paddle here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmctl.infer.sampling.reference import choose_one
from llmctl.infer.sampling.rows import Float, SamplerInput, SamplerOutput


class Sampler:
    """Chooses tokens from logits of one vocabulary.

    Args:
        vocab: V.
    """

    def __init__(self, vocab: int) -> None:
        from llmctl.infer.executors import native

        self.vocab = vocab
        self._compiled = native.sampler(vocab)

    def choose(self, logits_LV: Float, inputs: Sequence[SamplerInput], logprobs: bool = False) -> SamplerOutput:
        """A token for each row.

        Args:
            logits_LV: Float32 and contiguous.
            inputs: L of them.
            logprobs: Whether log-probabilities are requested.

        Raises:
            ValueError: The logits have another shape or type.
        """
        adjusted = [index for index, row in enumerate(inputs) if row.adjusted]
        if not adjusted:
            return self._choose(logits_LV, inputs, logprobs)
        # The likeliest tokens of these rows first, since log-probabilities are those of the logits as they are.
        plain = self._choose(logits_LV, [SamplerInput() if row.adjusted else row for row in inputs], logprobs)
        scores_LV = np.stack([inputs[index].adjust(logits_LV[index]) for index in adjusted])
        chosen = self._choose(scores_LV, [inputs[index] for index in adjusted], False)
        for row, index in enumerate(adjusted):
            token, status = int(chosen.token_L[row]), int(plain.status_L[index] or chosen.status_L[row])
            if logprobs and not status:
                plain.logprob_L[index] += float(logits_LV[index, token]) - float(logits_LV[index, plain.token_L[index]])
            plain.token_L[index], plain.status_L[index] = token, status
        return plain

    def _choose(self, logits_LV: Float, inputs: Sequence[SamplerInput], logprobs: bool) -> SamplerOutput:
        if self._compiled is not None:
            return SamplerOutput(*self._compiled.choose(logits_LV, inputs, logprobs))
        rows = len(inputs)
        if logits_LV.shape != (rows, self.vocab) or logits_LV.dtype != np.float32 or not logits_LV.flags.c_contiguous:
            raise ValueError(
                f"logits are {logits_LV.dtype} {list(logits_LV.shape)}, not contiguous float32 [{rows}, {self.vocab}]"
            )
        found = [choose_one(row_V, row, logprobs) for row_V, row in zip(logits_LV, inputs, strict=True)]
        tokens, scores, statuses = zip(*found, strict=True) if found else ((), (), ())
        return SamplerOutput(np.array(tokens, np.int32), np.array(scores, np.float64), np.array(statuses, np.int32))
