"""Choosing tokens from logits, many rows at once: by a compiled kernel where there is one, otherwise in numpy.

The order is that of transformers' processors: repetition penalty, presence and frequency penalty, excluded tokens,
temperature, top-k, top-p, min-p, then a draw. All of it in double precision. No paddle here. Letters: L rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmctl.infer.sampling import PENALISED_AWAY, BrokenLogitsError, SamplingParams, TokenLogprob

Float = NDArray[np.float32]
Int = NDArray[np.int32]
Scores = NDArray[np.float64]

NONE = np.empty(0, np.int32)
NO_NUMBERS, NOTHING_LEFT, NO_SUCH_TOKEN = 1, 2, 3

FAULTS = {
    NO_NUMBERS: "the highest logit is no finite number, or a penalty made it none",
    NOTHING_LEFT: "every token is excluded",
    NO_SUCH_TOKEN: "a token of the context or an excluded one is not in the vocabulary",
}
"""What a status means; 0 = a token was chosen."""


@dataclass(slots=True)
class Choice:
    """How a row chooses.

    Attributes:
        context: Prompt and answer so far, read only where there are penalties.
        generated: Tokens of the answer: the last of ``context``.
        excluded: Tokens that may not be chosen.
        sample: Draw; otherwise the highest score is taken, the first of several.
        draw: A number from 0 up to 1, drawn by the caller.
        temperature: Above 0.
        top_k: Only tokens that reach the k-th highest score; 0 = all.
        top_p: Only the likeliest tokens that together have this probability; 1 = all.
        min_p: Only tokens with at least this share of the likeliest one's probability; 0 = all.
        repetition: Penalty of all tokens of the context; 1 = none.
        presence: Subtracted from scores of tokens of the answer.
        frequency: Subtracted once for each time that they stand in the answer.
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

    @property
    def penalised(self) -> bool:
        """Whether the context matters."""
        return self.repetition != 1.0 or self.presence != 0.0 or self.frequency != 0.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the rows chose.

    Attributes:
        token_L: The tokens; where the status is not 0, nothing.
        logprob_L: Their log-probabilities in the softmax of the logits as they came; zeros where not asked for.
        status_L: 0, or a key of ``FAULTS``: one row's fault does not touch the others.
    """

    token_L: Int
    logprob_L: NDArray[np.float64]
    status_L: Int


class Sampler:
    """Chooses from logits of one vocabulary.

    Args:
        vocab: V.
    """

    def __init__(self, vocab: int) -> None:
        from llmctl.infer.executors import native

        self.vocab = vocab
        self._compiled = native.sampler(vocab)

    def choose(self, logits_LV: Float, choices: Sequence[Choice], logprobs: bool = False) -> Chosen:
        """A token for each row.

        Args:
            logits_LV: Float32 and contiguous.
            choices: L of them.
            logprobs: Whether log-probabilities are wanted.

        Raises:
            ValueError: The logits have another shape or type.
        """
        if self._compiled is not None:
            return Chosen(*self._compiled.choose(logits_LV, choices, logprobs))
        rows = len(choices)
        if logits_LV.shape != (rows, self.vocab) or logits_LV.dtype != np.float32 or not logits_LV.flags.c_contiguous:
            raise ValueError(
                f"logits are {logits_LV.dtype} {list(logits_LV.shape)}, not contiguous float32 [{rows}, {self.vocab}]"
            )
        found = [choose_one(row_V, choice, logprobs) for row_V, choice in zip(logits_LV, choices, strict=True)]
        tokens, scores, statuses = zip(*found, strict=True) if found else ((), (), ())
        return Chosen(np.array(tokens, np.int32), np.array(scores, np.float64), np.array(statuses, np.int32))


def choice_of(
    options: SamplingParams, context: Sequence[int], generated: int, end_ids: Collection[int], draw: float = 0.0
) -> Choice:
    """How a row chooses by the options of its request.

    Args:
        options: How to choose.
        context: Prompt and answer so far, read only where the options have penalties.
        generated: Number of tokens of the answer so far.
        end_ids: Tokens that end an answer, excluded before its least length.
        draw: As of ``Choice``.
    """
    choice = Choice(sample=options.sample)
    if options.penalised:
        choice.context, choice.generated = np.asarray(context, np.int32), generated
        choice.repetition = options.repetition_penalty
        choice.presence, choice.frequency = options.presence_penalty, options.frequency_penalty
    if generated < options.min_new_tokens:
        choice.excluded = np.asarray([*end_ids], np.int32)
    if options.sample:
        choice.draw, choice.temperature = draw, options.temperature
        choice.top_k, choice.top_p, choice.min_p = options.top_k, options.top_p, options.min_p
    return choice


def choose_one(logits_V: Float, choice: Choice, logprobs: bool = False) -> tuple[int, float, int]:
    """Token, log-probability and status of one row, in numpy; what the kernels are compared with."""
    named = np.concatenate([choice.context if choice.penalised else NONE, choice.excluded])
    if len(named) and (named.min() < 0 or named.max() >= len(logits_V)):
        return -1, 0.0, NO_SUCH_TOKEN
    highest = float(logits_V.max())
    if not math.isfinite(highest):
        return -1, 0.0, NO_NUMBERS
    if choice.sample or choice.penalised or len(choice.excluded):
        scores_V = penalise(logits_V.astype(np.float64), choice)
        if scores_V.max() == -math.inf:
            return -1, 0.0, NOTHING_LEFT
        if choice.sample and scores_V.max() == math.inf:
            return -1, 0.0, NO_NUMBERS
        token = _drawn(restrict(scores_V, choice), choice.draw) if choice.sample else int(scores_V.argmax())
    else:
        token = int(logits_V.argmax())
    if not logprobs:
        return token, 0.0, 0
    shifted_V = logits_V.astype(np.float64) - highest
    return token, float(shifted_V[token] - math.log(np.exp(shifted_V).sum())), 0


def penalise(scores_V: Scores, choice: Choice) -> Scores:
    """The same scores after the penalties, in place; minus infinity = excluded."""
    if choice.penalised and len(choice.context):
        seen = np.unique(choice.context)
        with np.errstate(over="ignore"):
            scores_V[seen] = np.where(
                scores_V[seen] < 0, scores_V[seen] * choice.repetition, scores_V[seen] / choice.repetition
            )
    if choice.penalised and choice.generated:
        answered, count = np.unique(choice.context[-choice.generated :], return_counts=True)
        scores_V[answered] -= choice.presence + choice.frequency * count
    scores_V[choice.excluded] = -math.inf
    return scores_V


def restrict(scores_V: Scores, choice: Choice) -> Scores:
    """Scores by the temperature, minus infinity where top-k, top-p or min-p leave a token out.

    Args:
        scores_V: The highest is a finite number.
        choice: One that samples.
    """
    # However low the temperature is, the highest score stays a number.
    with np.errstate(over="ignore"):
        scores_V = (scores_V - scores_V.max()) / choice.temperature
    if 0 < choice.top_k < len(scores_V):
        scores_V[scores_V < np.partition(scores_V, -choice.top_k)[-choice.top_k]] = -math.inf
    if choice.top_p < 1:
        order = np.argsort(scores_V, kind="stable")
        probability = np.exp(scores_V[order] - scores_V.max())
        least = np.cumsum(probability / probability.sum()) <= 1 - choice.top_p
        least[-1] = False
        scores_V[order[least]] = -math.inf
    if choice.min_p > 0:
        scores_V[scores_V < scores_V.max() + math.log(choice.min_p)] = -math.inf
    return scores_V


def _drawn(scores_V: Scores, draw: float) -> int:
    share_V = np.cumsum(np.exp(scores_V - scores_V.max()))
    return int((share_V / share_V[-1]).searchsorted(draw, side="right"))


def generator_for(options: SamplingParams, index: int) -> np.random.Generator:
    """The source of draws of a prompt, by its place among all prompts; it does not depend on the batch."""

    return np.random.default_rng([options.seed, index])


def choose(
    logits_V: np.ndarray,
    context: Sequence[int],
    generated: int,
    options: SamplingParams,
    end_ids: Collection[int],
    draws: np.random.Generator,
) -> int:
    """The next token.

    Args:
        logits_V: Scores of the vocabulary.
        context: Prompt and answer so far.
        generated: Number of tokens of the answer so far.
        options: How to choose.
        end_ids: Tokens that end an answer.
        draws: Source of randomness, used only when sampling: one number for each token.

    Raises:
        BrokenLogitsError: A score is NaN or infinity, or becomes it by penalties, or none is finite; or a token that is
            penalised or excluded is not in the vocabulary.
    """

    draw = draws.random() if options.sample else 0.0
    token, _, status = choose_one(logits_V, choice_of(options, context, generated, end_ids, draw))
    if status == NO_NUMBERS:
        check_finite(logits_V)
        raise BrokenLogitsError(PENALISED_AWAY)
    if status:
        raise BrokenLogitsError(FAULTS[status])
    return token


def check_finite(logits_V: np.ndarray) -> None:
    """Passes when a token can be chosen; minus infinity excludes one.

    Raises:
        BrokenLogitsError: A score is NaN or infinity, or none is finite.
    """
    highest = float(logits_V.max())
    if not math.isfinite(highest):
        raise BrokenLogitsError(f"the highest logit is no finite number: {highest}")


def processed(
    logits_V: np.ndarray,
    context: Sequence[int],
    generated: int,
    options: SamplingParams,
    end_ids: Collection[int],
) -> np.ndarray:
    """Scores [V] in float64 after every step that the options ask for; minus infinity = excluded.

    Raises:
        BrokenLogitsError: Tokens are to be drawn, and penalties made the highest score infinite.
    """

    choice = choice_of(options, context, generated, end_ids)
    scores_V = penalise(logits_V.astype(np.float64), choice)
    highest = scores_V.max()
    if not options.sample or highest == -math.inf:
        return scores_V
    if highest == math.inf:
        raise BrokenLogitsError(PENALISED_AWAY)
    return restrict(scores_V, choice)


def penalised(
    logits_V: np.ndarray,
    context: Sequence[int],
    generated: int,
    options: SamplingParams,
    end_ids: Collection[int],
) -> np.ndarray:
    """Scores [V] in float64 after the penalties and the least length."""

    return penalise(logits_V.astype(np.float64), choice_of(options, context, generated, end_ids))


def score(logits_V: np.ndarray, token: int, options: SamplingParams) -> TokenLogprob | None:
    """What the options ask for of a token's log-probability; None = nothing."""
    if options.logprobs is None:
        return None

    logprob_V = log_softmax(logits_V)
    count = min(options.logprobs, len(logprob_V))
    # Among equals the lower token comes first, as where the likeliest is taken.
    top = np.argsort(-logprob_V, kind="stable")[:count]
    return TokenLogprob(token, float(logprob_V[token]), tuple((int(i), float(logprob_V[i])) for i in top))


def log_softmax(logits_V: np.ndarray) -> np.ndarray:
    """Log-probabilities [V] in float64."""

    shifted_V = logits_V.astype(np.float64) - float(logits_V.max())
    return shifted_V - math.log(np.exp(shifted_V).sum())
