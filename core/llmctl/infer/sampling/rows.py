"""What the sampler takes and gives for each row of logits. Letters in this package: L rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmctl.infer.sampling.constraint import Words, allow
from llmctl.infer.sampling.params import SamplingParams

Float = NDArray[np.float32]
Int = NDArray[np.int32]

NONE = np.empty(0, np.int32)
NOT_FINITE, NOTHING_LEFT, NO_SUCH_TOKEN = 1, 2, 3

FAULTS = {
    NOT_FINITE: "the highest logit is not finite, or a penalty made it so",
    NOTHING_LEFT: "every token is excluded",
    NO_SUCH_TOKEN: "a token of the context or an excluded one is not in the vocabulary",
}
"""What a status means; 0 = a token was chosen."""


@dataclass(slots=True)
class SamplerInput:
    """How the token of a row is chosen.

    Attributes:
        context: Prompt and answer so far; read only if there are penalties.
        generated: Number of answer tokens, the last ones of ``context``.
        excluded: Tokens that may not be chosen.
        sample: Draw a token; otherwise the first of the highest scores is taken.
        draw: A random number in [0, 1), drawn by the caller.
        temperature: Above 0.
        top_k: Keep tokens that reach the k-th highest score; 0 = all.
        top_p: Keep the likeliest tokens that together reach this probability; 1 = all.
        min_p: Keep tokens with at least this fraction of the highest probability; 0 = all.
        repetition: Penalty of every token of the context; 1 = none.
        presence: Subtracted from the score of every token of the answer.
        frequency: Subtracted once per occurrence in the answer.
        biases: Tokens, and what is added to their logits before everything else.
        allowed: The tokens that may be chosen; None = all.
    """

    context: Int = field(default_factory=lambda: NONE)
    generated: int = 0
    excluded: Int = field(default_factory=lambda: NONE)
    sample: bool = False
    draw: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    biases: Sequence[tuple[int, float]] = ()
    allowed: Words | None = None

    @property
    def adjusted(self) -> bool:
        """Whether the logits change before everything else."""
        return bool(self.biases) or self.allowed is not None

    def adjust(self, logits_V: Float) -> Float:
        """The logits with biases, minus infinity where a token is not allowed; in memory of their own."""
        found_V = logits_V.copy() if self.allowed is None else allow(logits_V, self.allowed)
        for token, bias in self.biases:
            found_V[token] += bias
        return found_V

    @property
    def penalised(self) -> bool:
        """Whether there are penalties, so that the context matters."""
        return self.repetition != 1.0 or self.presence != 0.0 or self.frequency != 0.0


@dataclass(frozen=True, slots=True)
class SamplerOutput:
    """The tokens of all rows. An error in one row does not affect the others.

    Attributes:
        token_L: The tokens; undefined where the status is not 0.
        logprob_L: Their log-probabilities in the softmax of the raw logits; zeros if not requested.
        status_L: 0, or a key of ``FAULTS``.
    """

    token_L: Int
    logprob_L: NDArray[np.float64]
    status_L: Int


def sampler_input(
    params: SamplingParams, context: Sequence[int], generated: int, end_ids: Collection[int], draw: float = 0.0
) -> SamplerInput:
    """How the next token of a sequence is chosen by the parameters of its request.

    Args:
        params: The parameters.
        context: Prompt and answer so far; read only if there are penalties.
        generated: Number of tokens of the answer so far.
        end_ids: Tokens that end an answer, excluded before its minimum length.
        draw: As of ``SamplerInput``.
    """
    row = SamplerInput(sample=params.sample, biases=params.logit_bias)
    if params.penalised:
        row.context, row.generated = np.asarray(context, np.int32), generated
        row.repetition = params.repetition_penalty
        row.presence, row.frequency = params.presence_penalty, params.frequency_penalty
    if generated < params.min_new_tokens:
        row.excluded = np.asarray([*end_ids], np.int32)
    if params.sample:
        row.draw, row.temperature = draw, params.temperature
        row.top_k, row.top_p, row.min_p = params.top_k, params.top_p, params.min_p
    return row
