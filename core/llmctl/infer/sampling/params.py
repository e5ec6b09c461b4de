"""Sampling parameters of a request, and the log-probabilities that it may ask for."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields

from llmctl.errors import ConfigError
from llmctl.infer.sampling.number_types import check_types, is_integer, is_number

SAMPLE_ONLY = ("temperature", "top_k", "top_p", "min_p")
"""Parameters that have no effect where the likeliest token is taken."""

INTEGERS = ("max_new_tokens", "min_new_tokens", "top_k", "seed")
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, and what ends an answer.

    Attributes:
        max_new_tokens: Maximum number of tokens generated for a prompt.
        min_new_tokens: No end token is chosen before this many tokens.
        sample: Draw from the distribution; otherwise the likeliest token is taken (greedy).
        temperature: Divides the logits; below 1 sharpens.
        top_k: Only the k likeliest tokens; 0 = all.
        top_p: Only the likeliest tokens that together have this probability; 1 = all.
        min_p: Only tokens with at least this share of the likeliest token's probability; 0 = all (arXiv:2407.01082).
        repetition_penalty: Above 1 makes tokens of the prompt and the answer less likely (arXiv:1909.05858).
        presence_penalty: Subtracted from the logits of tokens of the answer.
        frequency_penalty: Subtracted from them once for each time that they occur in the answer.
        seed: Seed of random sampling; each prompt has its own random numbers.
        logprobs: Number of likeliest tokens whose log-probabilities are returned at each position, besides that of the chosen
            token; None = no log-probabilities. They are the model's: before penalties and temperature.
        stop: Strings that end an answer and are left out of it; one may be given as text.
        stop_token_ids: Tokens that end an answer, besides those of the model.
        ignore_eos: The model's own end tokens end no answer.
        logit_bias: Token -> what is added to its logit before the token is chosen; -100 excludes it in practice (fused).

    Raises:
        ConfigError: A value is out of range or of another type.
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
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()

    def __post_init__(self) -> None:
        check_types(self, INTEGERS, NUMBERS, ("sample", "ignore_eos"), ("logprobs",))
        biases = self.logit_bias.items() if isinstance(self.logit_bias, Mapping) else self.logit_bias
        object.__setattr__(self, "logit_bias", tuple((token, bias) for token, bias in biases))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        rules = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
            (
                "temperature",
                0 < self.temperature < math.inf,
                "above 0 to sample; 0 without sampling is greedy decoding",
            ),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("presence_penalty", abs(self.presence_penalty) < math.inf, "a finite number"),
            ("frequency_penalty", abs(self.frequency_penalty) < math.inf, "a finite number"),
            ("seed", self.seed >= 0, "at least 0"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "at least 0"),
            ("stop_token_ids", all(is_integer(token) for token in self.stop_token_ids), "token ids"),
            (
                "logit_bias",
                all(is_integer(token) and is_number(bias) and abs(bias) < math.inf for token, bias in self.logit_bias),
                "finite numbers by token id",
            ),
            ("stop", all(isinstance(text, str) and text for text in self.stop), "texts that are not empty"),
        )
        for name, good, allowed in rules:
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)} must be {allowed}")

    def ends(self, end_ids: Collection[int]) -> Collection[int]:
        """Tokens that end an answer, from those of the model."""
        if not self.stop_token_ids and not self.ignore_eos:
            return end_ids
        return {*self.stop_token_ids, *(() if self.ignore_eos else end_ids)}

    @property
    def without_effect(self) -> list[str]:
        """Parameters that are set and have no effect, since the likeliest token is taken."""
        defaults = {row.name: row.default for row in fields(self)}
        return [name for name in SAMPLE_ONLY if not self.sample and getattr(self, name) != defaults[name]]

    @property
    def penalised(self) -> bool:
        """Whether what was written before changes the scores."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)


class BrokenLogitsError(ValueError):
    """Logits from which no token can be chosen."""


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token, and the likeliest tokens in its place with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
