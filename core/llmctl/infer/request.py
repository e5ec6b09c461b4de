"""Requests, events and answers in tokens. No paddle or numpy here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmctl.errors import ConfigError
from llmctl.infer.sampling import SamplingParams, TokenLogprob
from llmctl.infer.sampling.number_types import check_types, is_integer

if TYPE_CHECKING:
    from llmctl.infer.sampling.constraint import Constraint


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        ids: Its tokens, without the end token.
        finish_reason: ``end``, ``length``, ``stop``, ``scored``, ``cancelled`` or ``error``.
        error: What went wrong.
        logprobs: Log-probabilities of each token, if the options ask for them.
        score: Score of a beam: the sum of its tokens' log-probabilities, with the length penalty.
        others: The next best answers of beam search.
        cause: The exception that an error comes from: a callback's, or why the request was refused.
        cached_tokens: Tokens of the prompt that were found in the KV cache.
    """

    ids: list[int]
    finish_reason: str
    error: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    score: float | None = None
    others: tuple[Generation, ...] = ()
    cause: Exception | None = field(default=None, compare=False, repr=False)
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Event:
    """A new token of a request, or its end.

    Attributes:
        id: The request.
        token: A token of the answer; None = the answer has ended.
        score: Its log-probability, if the options ask for it.
        done: The whole answer, when it has ended.
    """

    id: int
    token: int | None = None
    score: TokenLogprob | None = None
    done: Generation | None = None


OnEvent = Callable[[Event], "bool | None"]
"""Called for each event of a request, in the thread that runs the engine; True ends the answer with the reason ``stop``, an
exception with ``error``."""


@dataclass(frozen=True, kw_only=True)
class BeamOptions:
    """Beam search, by the rules of transformers.

    Attributes:
        beams: Number of beams.
        length_penalty: The sum of log-probabilities of a complete answer is divided by its length to this power.
        early_stopping: ``True`` = end when this many answers are complete; ``False`` = when no beam would be better at its
            current length; ``"never"`` = when no beam could become better.
        answers: How many are returned.

    Raises:
        ConfigError: A value is out of range.
    """

    beams: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    answers: int = 1

    def __post_init__(self) -> None:
        if self.beams < 2:
            raise ConfigError(f"beams={self.beams} must be at least 2")
        if not 1 <= self.answers <= self.beams:
            raise ConfigError(f"answers={self.answers} must be between 1 and beams={self.beams}")
        if self.early_stopping not in (True, False, "never"):
            raise ConfigError(f"early_stopping={self.early_stopping!r} must be true, false or 'never'")
        if not abs(self.length_penalty) < float("inf"):
            raise ConfigError(f"length_penalty={self.length_penalty} must be a finite number")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to answer it.

    Attributes:
        prompt: Token ids, at least one.
        options: How tokens are chosen.
        index: Index among all prompts, for the random numbers.
        adapter: Index of the adapter; -1 = none.
        draft: Maximum number of draft tokens per step, looked up in what was written before; 0 = none. Answers are the same.
        beams: Beam search; None = one answer, token by token.
        constraint: The form of the answer; end tokens of the model must be among its own. None = any.
        score_from: Nothing is generated; the answer has the log-probabilities of the prompt's tokens from this index on, at
            least 1. None = the prompt is answered.
        on_event: Called for each event.
        on_logits: With ``score_from``: called with the index of each scored token and the logits [V] that predict it, which are
            valid during the call.

    Raises:
        ConfigError: Options exclude each other, are out of range or of another type.
    """

    prompt: Sequence[int]
    options: SamplingParams = SamplingParams()
    index: int = 0
    adapter: int = -1
    draft: int = 0
    beams: BeamOptions | None = None
    constraint: Constraint | None = None
    score_from: int | None = None
    on_event: OnEvent | None = None
    on_logits: Callable[[int, Any], None] | None = None

    def __post_init__(self) -> None:
        check_types(self, ("index", "adapter", "draft"), optional=("score_from",))
        for kind in set(map(type, self.prompt)):
            if kind is not int and not is_integer(token := next(one for one in self.prompt if type(one) is kind)):
                raise ConfigError(f"the prompt has {token!r}; it must be a list of token ids")
        if self.index < 0:
            raise ConfigError(f"index={self.index} must be at least 0")
        if self.draft < 0:
            raise ConfigError(f"draft={self.draft} must be at least 0")
        if self.beams and (self.options.sample or self.draft or self.options.logprobs is not None):
            raise ConfigError(
                "beam search cannot be combined with sampling, speculative decoding or log-probabilities of tokens"
            )
        if self.constraint is not None and (self.beams or self.score_from is not None):
            raise ConfigError("a constraint cannot be combined with beam search or scoring")
        if self.score_from is not None and (self.beams or not 1 <= self.score_from < len(self.prompt)):
            raise ConfigError(
                f"score_from={self.score_from} must be between 1 and {len(self.prompt) - 1}, without beam search"
            )

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities of tokens are asked for."""
        return self.options.logprobs is not None or self.score_from is not None
