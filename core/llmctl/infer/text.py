"""From prompts to text: streams of pieces, stop strings, lengths that the model allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmctl.card.dims import Dims
from llmctl.errors import ConfigError
from llmctl.infer.engine.limits import remedy
from llmctl.infer.request import BeamOptions, Event, Generation, Request
from llmctl.infer.runner import Runner
from llmctl.infer.sampling import SamplingParams, TokenScore
from llmctl.tokenizers import Tokenizer

OnText = Callable[[int, str], None]
"""Called with the prompt's place and a piece of its answer."""


@dataclass(frozen=True)
class Answer:
    """The text of an answer.

    Attributes:
        text: The text.
        ids: Its tokens.
        finish_reason: Why it ended: ``end``, ``length``, ``stop`` or ``error``.
        error: What went wrong.
        logprobs: For each token, where the options ask for them.
        others: Of beam search: the next best texts.
    """

    text: str
    ids: list[int]
    finish_reason: str
    error: str = ""
    logprobs: Sequence[TokenScore] = ()
    others: Sequence[str] = ()


@dataclass(frozen=True)
class Ask:
    """A prompt of token ids, its place among all prompts for its draws, and its adapter (-1 = none)."""

    prompt: Sequence[int]
    index: int = 0
    adapter: int = -1


class StopFilter:
    """Text that passes piece by piece until a stop string appears; no part of a stop string passes.

    Args:
        stops: The stop strings.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def add(self, piece: str) -> str:
        """What may be shown after this piece."""
        text = self._held + piece
        found = [text.index(stop) for stop in self._stops if stop in text]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of the text that begins the stop string."""
        sizes = range(min(len(stop) - 1, len(text)), 0, -1)
        return next((size for size in sizes if text.endswith(stop[:size])), 0)


class _Stream:
    """The text of one answer while it grows."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], show: Callable[[str], None]) -> None:
        self._pieces, self._filter, self._show = tokenizer.stream(), StopFilter(stops), show
        self.text = ""

    def on_event(self, event: Event) -> bool:
        """Takes a token; True = a stop string has appeared."""
        if event.token is None:
            return False
        self._add(self._filter.add(self._pieces.add(event.token)))
        return self._filter.stopped

    def finish(self) -> bool:
        """Takes what was held back; whether a stop string ended the text."""
        if not self._filter.stopped:
            self._add(self._filter.add(self._pieces.finish()))
            self._add("" if self._filter.stopped else self._filter.finish())
        return self._filter.stopped

    def _add(self, piece: str) -> None:
        self.text += piece
        if piece:
            self._show(piece)


@dataclass(frozen=True)
class Writer:
    """Answers prompts with text.

    Attributes:
        runner: Gives the tokens.
        tokenizer: The model's.
        max_positions: Most tokens of prompt and answer together; 0 = no limit.
        options: How tokens are chosen.
        stops: Strings that end an answer and are left out of it.
        draft: Most tokens that are guessed ahead at a time; 0 = none.
        beams: Beam search; None = token by token.
    """

    runner: Runner
    tokenizer: Tokenizer
    max_positions: int
    options: SamplingParams
    stops: Sequence[str] = ()
    draft: int = 0
    beams: BeamOptions | None = None

    def answer(self, prompts: Sequence[Sequence[int]], on_text: OnText | None = None, first: int = 0) -> list[Answer]:
        """Answers to prompts of token ids, in order.

        Args:
            prompts: Token ids of each prompt.
            on_text: Called with pieces of text as they are known.
            first: Place of the first prompt among all, for its draws.

        Raises:
            ConfigError: A prompt is empty or too long.
        """
        check_lengths(prompts, self.options, self.max_positions)
        asks = [Ask(prompt, first + place) for place, prompt in enumerate(prompts)]
        found = dict(self.answers(asks, on_text))
        return [found[place] for place in range(len(prompts))]

    def answers(self, asks: Sequence[Ask], on_text: OnText | None = None) -> Iterator[tuple[int, Answer]]:
        """Each ask's place and its answer, in the order in which they end. Whatever is wrong with one is its answer.

        Args:
            asks: What is asked.
            on_text: Called with pieces of text as they are known.
        """
        streams: dict[int, _Stream] = {}
        good: list[int] = []
        for place, ask in enumerate(asks):
            try:
                check_lengths([ask.prompt], self.options, self.max_positions, ["the prompt"])
                good.append(place)
            except ConfigError as error:
                yield place, Answer("", [], "error", str(error))

        def requests() -> Iterator[Request]:
            for place in good:
                ask = asks[place]
                show = partial(on_text, place) if on_text else lambda piece: None
                streams[place] = _Stream(self.tokenizer, self.stops, show)
                yield Request(
                    prompt=ask.prompt, options=self.options, index=ask.index, adapter=ask.adapter, draft=self.draft,
                    beams=self.beams, on_event=streams[place].on_event,
                )  # fmt: skip

        for number, made in self.runner.run(requests()):
            place = good[number]
            yield place, self._answer(made, streams.pop(place, None))

    def _answer(self, made: Generation, stream: _Stream | None) -> Answer:
        if made.finish_reason == "error" or stream is None:
            return Answer("", made.ids, "error", made.error)
        if self.beams:
            others = [self.tokenizer.decode(other.ids) for other in made.others]
            return Answer(self.tokenizer.decode(made.ids), made.ids, made.finish_reason, others=others)
        reason = "stop" if stream.finish() else made.finish_reason
        return Answer(stream.text, made.ids, reason, logprobs=made.logprobs)


def longest(layer: Any, dims: Dims) -> int:
    """Most tokens of prompt and answer that a layer takes; 0 = any number."""
    limit = 0 if getattr(layer, "position_depends_on_length", False) else int(dims.get("max_positions") or 0)
    return max(1, limit - getattr(layer, "virtual_tokens", 0)) if limit else 0


def check_lengths(
    prompts: Sequence[Sequence[int]], options: SamplingParams, max_positions: int, names: Sequence[str] = ()
) -> None:
    """Passes when every prompt holds something and leaves room for its answer.

    Raises:
        ConfigError: A prompt is empty or too long.
    """
    for index, prompt in enumerate(prompts):
        name = names[index] if names else f"prompt {index + 1}"
        if not prompt:
            raise ConfigError(f"{name} is empty, and the tokenizer has no token to begin with; write something")
        if max_positions and len(prompt) + options.max_new_tokens > max_positions:
            raise ConfigError(
                f"{name} has {len(prompt)} tokens; with max_new_tokens={options.max_new_tokens} that is over the "
                f"{max_positions} positions of the model. {remedy(len(prompt), max_positions)}"
            )
