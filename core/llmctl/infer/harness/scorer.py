"""The three kinds of requests of lm-evaluation-harness, answered by an engine: log-likelihoods, whole texts, answers.

Shape suffixes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmctl.errors import ConfigError, LlmctlError, UnsupportedError
from llmctl.infer.handle import EngineHandle, LoadedEngine
from llmctl.infer.harness import tokens
from llmctl.infer.perplexity.windows import Window
from llmctl.infer.request import Request
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.sampling.logprobs import log_softmax
from llmctl.infer.text.generator import TextGenerator, TextRequest
from llmctl.io.progress import Progress
from llmctl.tokenizers import Tokenizer

if TYPE_CHECKING:
    import numpy as np

POSITIONS = 2048
"""Tokens that a model without a limit reads."""

ANSWER = 256
"""Tokens of an answer where the task does not say."""

ROWS = 64
"""Contexts with several continuations that are read together."""

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the number of tokens of an answer in tasks; the first that is given counts."""

SAMPLING = ("temperature", "top_k", "top_p", "min_p")
"""What a task may say where it draws (``do_sample``)."""


class Scorer:
    """A model that answers requests.

    Args:
        handle: The engine, checked; it is loaded with the first requests, for their lengths.
        tokenizer: Its tokenizer.
    """

    def __init__(self, handle: EngineHandle, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.notes: tuple[str, ...] = ()
        self._handle, self._limit = handle, handle.positions or POSITIONS
        self._loaded: tuple[int, LoadedEngine] | None = None

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each context and continuation the sum of the log-probabilities, in nats, and whether all tokens are the likeliest.

        Raises:
            LlmctlError: A continuation cannot be scored.
        """
        return self._score([tokens.continuation(self.tokenizer, *pair, self._limit) for pair in pairs])

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-probability of each text, in nats.

        Raises:
            LlmctlError: A text cannot be scored.
        """
        parts = [tokens.rolling(self.tokenizer, text, self._limit) for text in texts]
        found = iter(self._score([window for windows in parts for window in windows]))
        return [sum(next(found)[0] for _ in windows) for windows in parts]

    def generate_until(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """The answer to each context, up to the first stop string.

        Args:
            asked: Contexts, and what the task says of their answers (``generation_kwargs``).

        Raises:
            LlmctlError: An answer would not fit the positions, or the task says something unknown.
        """
        requests = []
        for index, (context, given) in enumerate(asked):
            params = sampling_params(given)
            room = self._limit - params.max_new_tokens
            if room < 1:
                raise ConfigError(
                    f"the task asks for answers of up to {params.max_new_tokens} tokens (max_gen_toks), and the model has "
                    f"{self._limit} positions; lower it in the task"
                )
            requests.append(TextRequest(tokens.prompt(self.tokenizer, context, room), params, index))
        if not requests:
            return []
        loaded = self._engine([len(one.prompt) + one.params.max_new_tokens for one in requests])
        texts: dict[int, str] = {}
        with Progress("answering", len(requests)) as progress:
            for index, made in TextGenerator(loaded.backend, self.tokenizer, self._limit).outputs(requests):
                if made.finish_reason == "error":
                    raise made.cause or LlmctlError(made.error)
                texts[index] = made.text
                progress(1)
        return [texts[index] for index in range(len(requests))]

    def close(self) -> None:
        """Ends what runs in the background."""
        if self._loaded is not None:
            self._loaded[1].backend.close()
            self._loaded = None

    def _engine(self, lengths: Sequence[int]) -> LoadedEngine:
        """The engine, with a KV cache for requests of these lengths; loaded again where earlier ones were shorter."""
        longest = max(lengths)
        if self._loaded is None or self._loaded[0] < longest:
            self.close()
            self._loaded = longest, self._handle.load(self.tokenizer, lengths)
            self.notes = self._loaded[1].notes
        return self._loaded[1]

    def _score(self, windows: Sequence[Window]) -> list[tuple[float, bool]]:
        """The sum of the log-probabilities of each window's scored tokens, and whether all are the likeliest.

        Windows that differ in their last token only are computed once.
        """
        if not windows:
            return []
        shared: dict[tuple[tuple[int, ...], int], _Scored] = {}
        scored = [shared.setdefault((tuple(one.ids[:-1]), one.scored[0]), _Scored(one)) for one in windows]
        for one, window in zip(scored, windows, strict=True):
            one.ends[window.ids[-1]] = 0.0
        backend = self._engine([len(one.window.ids) for one in shared.values()]).backend
        with Progress("scoring", len(shared)) as progress:
            for together in _contexts_first(list(shared.values())):
                for index, made in backend.run(one.request() for one in together):
                    if made.finish_reason != "scored":
                        raise made.cause or LlmctlError(made.error)
                    together[index].add([scored.logprob for scored in made.logprobs])
                    progress(1)
        return [one.result(window.ids[-1]) for one, window in zip(scored, windows, strict=True)]


@dataclass
class _Scored:
    """A window while it is scored.

    Attributes:
        window: Its tokens; the last one stands for any.
        total: Sum of the log-probabilities of the scored tokens before the last.
        likeliest: Whether these are the likeliest.
        ends: Tokens in place of the last, with their log-probabilities.
        top: The likeliest token there.
    """

    window: Window
    total: float = 0.0
    likeliest: bool = True
    ends: dict[int, float] = field(default_factory=dict)
    top: int = -1

    @property
    def context(self) -> tuple[int, ...]:
        """The tokens before the scored ones."""
        return tuple(self.window.ids[: self.window.scored[0]])

    def request(self) -> Request:
        """What the backend is asked."""
        return Request(prompt=self.window.ids, score_from=self.window.scored[0], on_logits=self._see)

    def _see(self, at: int, logits_V: np.ndarray) -> None:
        top = int(logits_V.argmax())
        if at < len(self.window.ids) - 1:
            self.likeliest = self.likeliest and top == self.window.ids[at]
            return
        self.top = top
        if len(self.ends) > 1:
            logprobs_V = log_softmax(logits_V)
            self.ends = {token: float(logprobs_V[token]) for token in self.ends}

    def add(self, logprobs: Sequence[float]) -> None:
        """Takes the log-probabilities of the scored tokens."""
        self.total = sum(logprobs[:-1])
        if len(self.ends) == 1:
            self.ends = {self.window.ids[-1]: logprobs[-1]}

    def result(self, last: int) -> tuple[float, bool]:
        """The sum, and whether all tokens are the likeliest, with this token at the end."""
        return self.total + self.ends[last], self.likeliest and self.top == last


def _contexts_first(windows: Sequence[_Scored]) -> Iterator[list[_Scored]]:
    """Windows that are computed together: one of each of some contexts, then the others, which find these in the KV cache."""
    by_context: dict[tuple[int, ...], list[_Scored]] = {}
    for one in windows:
        by_context.setdefault(one.context, []).append(one)
    several = [ones for ones in by_context.values() if ones[1:]]
    for start in range(0, len(several), ROWS):
        group = several[start : start + ROWS]
        yield [ones[0] for ones in group]
        yield [one for ones in group for one in ones[1:]]
    yield [ones[0] for ones in by_context.values() if not ones[1:]]


def sampling_params(given: Mapping[str, Any]) -> SamplingParams:
    """How an answer is written, from what a task says (``generation_kwargs``): greedy unless it draws.

    Raises:
        ConfigError: A value is out of range.
        UnsupportedError: The task says something that has no counterpart.
    """
    left = dict(given)
    until = left.pop("until", None) or []
    stop = [until] if isinstance(until, str) else until
    counts = [value for name in LENGTHS if (value := left.pop(name, None)) is not None]
    temperature = float(left.get("temperature") or 0.0)
    drawn = left.pop("do_sample", None)
    drawn = temperature > 0 if drawn is None else bool(drawn)
    values = {name: value for name in SAMPLING if (value := left.pop(name, None)) is not None and drawn}
    penalty = left.pop("repetition_penalty", 1.0)
    if left:
        raise UnsupportedError(
            f"the task's generation_kwargs have {', '.join(sorted(left))}; known are until, do_sample, repetition_penalty, "
            f"{', '.join((*LENGTHS, *SAMPLING))}"
        )
    return SamplingParams(
        max_new_tokens=int(next(iter(counts), ANSWER)), sample=drawn, stop=[text for text in stop if text],
        repetition_penalty=float(penalty), **values,
    )  # fmt: skip
