"""From prompts to text: streams of pieces, stop strings, lengths that the model allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.card import Dims
from llmctl.errors import ConfigError
from llmctl.infer.sampling import SamplingOptions
from llmctl.tokenizers import Tokenizer

OnText = Callable[[int, str], None]
"""Called with the prompt's place and a piece of its answer."""


@dataclass(frozen=True)
class Answer:
    """The text of an answer, its tokens, and why it ended: ``end``, ``length`` or ``stop``."""

    text: str
    ids: list[int]
    finish_reason: str


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


@dataclass(frozen=True)
class Writer:
    """A model that answers prompts with text.

    Attributes:
        model: The layer.
        tokenizer: Its tokenizer.
        max_positions: Most tokens of prompt and answer together; 0 = no limit.
        options: How tokens are chosen.
        stops: Strings that end an answer and are left out of it.
        batch_size: Prompts answered together.
        use_cache: False computes every step from the beginning.
    """

    model: Any
    tokenizer: Tokenizer
    max_positions: int
    options: SamplingOptions
    stops: Sequence[str] = ()
    batch_size: int = 8
    use_cache: bool = True

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
        answers: list[Answer] = []
        for start in range(0, len(prompts), self.batch_size):
            answers += self._batch(prompts[start : start + self.batch_size], on_text, start, first + start)
        return answers

    def _batch(self, prompts: Sequence[Sequence[int]], on_text: OnText | None, start: int, first: int) -> list[Answer]:
        from llmctl.infer.generate import generate

        streams = [self.tokenizer.stream() for _ in prompts]
        filters = [StopFilter(self.stops) for _ in prompts]
        texts = ["" for _ in prompts]

        def show(index: int, piece: str) -> None:
            texts[index] += piece
            if piece and on_text:
                on_text(start + index, piece)

        def on_token(index: int, token: int) -> bool:
            show(index, filters[index].add(streams[index].add(token)))
            return filters[index].stopped

        rows = generate(
            self.model,
            prompts,
            self.options,
            self.tokenizer.eos_ids,
            self.tokenizer.pad_id,
            on_token,
            self.use_cache,
            first,
        )
        answers = []
        for index, row in enumerate(rows):
            if not filters[index].stopped:
                show(index, filters[index].add(streams[index].finish()))
                show(index, "" if filters[index].stopped else filters[index].finish())
            reason = "stop" if filters[index].stopped else row.finish_reason
            answers.append(Answer(texts[index], row.ids, reason))
        return answers


def longest(layer: Any, dims: Dims) -> int:
    """Most tokens of prompt and answer that a layer takes; 0 = any number."""
    limit = 0 if getattr(layer, "position_depends_on_length", False) else int(dims.get("max_positions") or 0)
    return max(1, limit - getattr(layer, "virtual_tokens", 0)) if limit else 0


def check_lengths(
    prompts: Sequence[Sequence[int]], options: SamplingOptions, max_positions: int, names: Sequence[str] = ()
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
                f"{max_positions} positions of the model. Shorten it, or set max_new_tokens to "
                f"{max(0, max_positions - len(prompt))} or less"
            )
