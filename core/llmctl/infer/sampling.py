"""Choosing the next token from logits. The order of steps is that of transformers' processors: repetition penalty, presence
and frequency penalty, minimum length, temperature, top-k, top-p, min-p."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np


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
        BrokenLogitsError: A score is NaN or infinity, or becomes it by penalties, or none is finite.
    """
    check_finite(logits_V)
    if not options.sample and not _changes_greedy(options, generated):
        return int(logits_V.argmax())
    scores_V = processed(logits_V, context, generated, options, end_ids)
    if scores_V.max() == -math.inf:
        raise BrokenLogitsError("every token is excluded")
    if not options.sample:
        return int(scores_V.argmax())
    import numpy as np

    probability_V = np.exp(scores_V - scores_V.max())
    share_V = (probability_V / probability_V.sum()).cumsum()
    return int((share_V / share_V[-1]).searchsorted(draws.random(), side="right"))


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
    """Scores [V] in float64 after every step that the options ask for; minus infinity = excluded."""
    scores_V = penalised(logits_V, context, generated, options, end_ids)
    if options.sample:
        scores_V = _nucleus(_best(_tempered(scores_V, options.temperature), options.top_k), options.top_p)
        if options.min_p:
            scores_V[scores_V < scores_V.max() + math.log(options.min_p)] = -math.inf
    return scores_V


def penalised(
    logits_V: np.ndarray,
    context: Sequence[int],
    generated: int,
    options: SamplingOptions,
    end_ids: Collection[int],
) -> np.ndarray:
    """Scores [V] in float64 after the penalties and the least length."""
    import numpy as np

    scores_V = logits_V.astype(np.float64)
    if options.repetition_penalty != 1 and len(context):
        seen = np.unique(np.asarray(context, np.int64))
        penalty = options.repetition_penalty
        scores_V[seen] = np.where(scores_V[seen] < 0, scores_V[seen] * penalty, scores_V[seen] / penalty)
    if generated and (options.presence_penalty or options.frequency_penalty):
        answered, count = np.unique(np.asarray(context[-generated:], np.int64), return_counts=True)
        scores_V[answered] -= options.presence_penalty + options.frequency_penalty * count
    if generated < options.min_new_tokens:
        scores_V[list(end_ids)] = -math.inf
    return scores_V


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


def _changes_greedy(options: SamplingOptions, generated: int) -> bool:
    """Whether another token than the likeliest might be taken."""
    penalties = options.presence_penalty or options.frequency_penalty or options.repetition_penalty != 1
    return bool(penalties) or generated < options.min_new_tokens


def _tempered(scores_V: Any, temperature: float) -> Any:
    """Differences to the highest score, divided: that one stays a number however low the temperature is.

    Raises:
        BrokenLogitsError: Penalties made it infinite.
    """
    import numpy as np

    highest = scores_V.max()
    if highest == math.inf:
        raise BrokenLogitsError("the highest logit is no finite number after the penalties")
    if highest == -math.inf:
        return scores_V
    with np.errstate(over="ignore"):
        return (scores_V - highest) / temperature


def _best(scores_V: Any, count: int) -> Any:
    """Scores without those below the count-th highest."""
    import numpy as np

    if 0 < count < len(scores_V):
        scores_V = np.where(scores_V < np.partition(scores_V, -count)[-count], -math.inf, scores_V)
    return scores_V


def _nucleus(scores_V: Any, share: float) -> Any:
    """Scores without the least likely tokens that together have at most ``1 - share`` of the probability."""
    import numpy as np

    if share >= 1:
        return scores_V
    order = np.argsort(scores_V, kind="stable")
    probability = np.exp(scores_V[order] - scores_V.max())
    below = np.cumsum(probability / probability.sum()) <= 1 - share
    below[-1] = False
    kept = scores_V.copy()
    kept[order[below]] = -math.inf
    return kept
