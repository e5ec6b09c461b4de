"""How tokens are chosen and what is told of them: the options of a request, and one row of logits under them.

Numpy is imported only where logits are touched; the steps themselves are in ``sampler``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmctl.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

PENALISED_AWAY = "the highest logit is no finite number after the penalties"


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen and how many.

    Attributes:
        max_new_tokens: Most tokens generated for a prompt.
        min_new_tokens: No end token is chosen before so many tokens.
        sample: Draw from the distribution; otherwise the likeliest token is taken.
        temperature: Divides the logits; below 1 sharpens.
        top_k: Only the k likeliest tokens; 0 = all.
        top_p: Only the likeliest tokens that together have this probability; 1 = all.
        min_p: Only tokens with at least this share of the likeliest token's probability; 0 = all (arXiv:2407.01082).
        repetition_penalty: Above 1 makes tokens of the prompt and the answer less likely (arXiv:1909.05858).
        presence_penalty: Subtracted from the logits of tokens of the answer.
        frequency_penalty: Subtracted from them once for each time that they stand in the answer.
        seed: Of the draws; each prompt has draws of its own.
        logprobs: Log-probabilities of each token of the answer and of so many of the likeliest in its place; None = not
            asked for. They are the model's: before penalties and temperature.

    Raises:
        ConfigError: A value is out of range.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        rules = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
            ("temperature", 0 < self.temperature < math.inf, "above 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("presence_penalty", abs(self.presence_penalty) < math.inf, "a finite number"),
            ("frequency_penalty", abs(self.frequency_penalty) < math.inf, "a finite number"),
            ("seed", self.seed >= 0, "at least 0"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "at least 0"),
        )
        for name, good, allowed in rules:
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)} must be {allowed}")

    @property
    def penalised(self) -> bool:
        """Whether what was written before changes the scores."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)


class BrokenLogitsError(ValueError):
    """Logits from which no token can be chosen."""


@dataclass(frozen=True)
class TokenScore:
    """Log-probability of a token, and the likeliest tokens in its place with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def generator_for(options: SamplingOptions, index: int) -> np.random.Generator:
    """The source of draws of a prompt, by its place among all prompts; it does not depend on the batch."""
    import numpy as np

    return np.random.default_rng([options.seed, index])


def choose(
    logits_V: np.ndarray,
    context: Sequence[int],
    generated: int,
    options: SamplingOptions,
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
    from llmctl.infer.sampler import FAULTS, NO_NUMBERS, choice_of, choose_one

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
    options: SamplingOptions,
    end_ids: Collection[int],
) -> np.ndarray:
    """Scores [V] in float64 after every step that the options ask for; minus infinity = excluded.

    Raises:
        BrokenLogitsError: Tokens are to be drawn, and penalties made the highest score infinite.
    """
    import numpy as np

    from llmctl.infer.sampler import choice_of, penalise, restrict

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
    options: SamplingOptions,
    end_ids: Collection[int],
) -> np.ndarray:
    """Scores [V] in float64 after the penalties and the least length."""
    import numpy as np

    from llmctl.infer.sampler import choice_of, penalise

    return penalise(logits_V.astype(np.float64), choice_of(options, context, generated, end_ids))


def score(logits_V: np.ndarray, token: int, options: SamplingOptions) -> TokenScore | None:
    """What the options ask for of a token's log-probability; None = nothing."""
    if options.logprobs is None:
        return None
    import numpy as np

    logprob_V = log_softmax(logits_V)
    count = min(options.logprobs, len(logprob_V))
    # Among equals the lower token comes first, as where the likeliest is taken.
    top = np.argsort(-logprob_V, kind="stable")[:count]
    return TokenScore(token, float(logprob_V[token]), tuple((int(i), float(logprob_V[i])) for i in top))


def log_softmax(logits_V: np.ndarray) -> np.ndarray:
    """Log-probabilities [V] in float64."""
    import numpy as np

    shifted_V = logits_V.astype(np.float64) - float(logits_V.max())
    return shifted_V - math.log(np.exp(shifted_V).sum())
