"""Choosing the next token from logits. The order of steps is that of transformers' processors: repetition penalty,
minimum length, temperature, top-k, top-p."""

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
        repetition_penalty: Above 1 makes tokens of the prompt and the answer less likely (arXiv:1909.05858).
        seed: Of the draws; each prompt has draws of its own.

    Raises:
        ConfigError: A value is out of range.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
            ("temperature", 0 < self.temperature < math.inf, "above 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("seed", self.seed >= 0, "at least 0"),
        )
        for name, good, allowed in rules:
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)} must be {allowed}")


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
        draws: Source of randomness, used only when sampling.
    """
    scores_V = processed(logits_V, context, generated, options, end_ids)
    if not options.sample:
        return int(scores_V.argmax())
    import numpy as np

    probability_V = np.exp(scores_V - scores_V.max())
    return int(draws.choice(len(probability_V), p=probability_V / probability_V.sum()))


def processed(
    logits_V: np.ndarray,
    context: Sequence[int],
    generated: int,
    options: SamplingOptions,
    end_ids: Collection[int],
) -> np.ndarray:
    """Scores [V] in float64 after every step that the options ask for; minus infinity = excluded."""
    import numpy as np

    scores_V = logits_V.astype(np.float64)
    if options.repetition_penalty != 1 and len(context):
        seen = np.unique(np.asarray(context, np.int64))
        penalty = options.repetition_penalty
        scores_V[seen] = np.where(scores_V[seen] < 0, scores_V[seen] * penalty, scores_V[seen] / penalty)
    if generated < options.min_new_tokens:
        scores_V[list(end_ids)] = -math.inf
    if options.sample:
        scores_V = _nucleus(_best(scores_V / options.temperature, options.top_k), options.top_p)
    return scores_V


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
