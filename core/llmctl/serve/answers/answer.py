"""The text of one answer while it grows. Whole and streamed answers are made of the same pieces."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from llmctl.infer.request import Event, Generation
from llmctl.infer.sampling import SamplingParams, TokenLogprob
from llmctl.infer.text.stream import StopFilter
from llmctl.serve.answers.parts import Kind, Part, PartsReader
from llmctl.serve.problems import Problem
from llmctl.tokenizers import Tokenizer

REASONS = {"end": "stop", "stop": "stop", "length": "length", "cancelled": "stop"}
"""Reason of the engine -> OpenAI's."""


@dataclass(slots=True)
class Piece:
    """What an answer grows by.

    Attributes:
        parts: What it says, thinks and calls, in order.
        scores: Log-probabilities of its tokens, each with where its token begins in the text of the answer.
        finish: Why the answer has ended; empty = it has not.
        cut: Whether it has ended within the arguments of a call.
    """

    parts: list[Part] = field(default_factory=list)
    scores: list[tuple[int, TokenLogprob]] = field(default_factory=list)
    finish: str = ""
    cut: bool = False

    def __bool__(self) -> bool:
        return bool(self.parts or self.scores or self.finish)

    def add(self, other: Piece) -> None:
        """Adds what follows."""
        self.parts += other.parts
        self.scores += other.scores
        self.finish = other.finish or self.finish
        self.cut = self.cut or other.cut

    def said(self, kind: Kind) -> str:
        """The text of its parts of a kind."""
        return "".join(part.text for part in self.parts if part.kind == kind)


class Answer:
    """One answer.

    Args:
        tokenizer: The model's.
        params: How its tokens are chosen.
        ends: Tokens that end it here, and whose log-probabilities count, instead of in the engine.
        reader: Finds thoughts and calls in its text; None = all of it is said.
        marks: Special tokens that this reads, with their names.

    Attributes:
        tokens: How many tokens it has, those of a stop string among them.
        cached: Tokens of its prompt that were found in the KV cache.
        done: Whether it has ended.
        closed: Whether the engine has ended it too.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        ends: Collection[int] = (),
        reader: PartsReader | None = None,
        marks: Mapping[int, str] | None = None,
    ) -> None:
        self._decoder, self._filter, self._ends = tokenizer.stream(), StopFilter(tuple(params.stop)), ends
        self._reader, self._marks = reader, marks or {}
        self._seen = self._shown = 0
        self._held: list[tuple[int, TokenLogprob]] = []
        self.tokens = self.cached = 0
        self.done = self.closed = False

    @property
    def stop_text(self) -> str:
        """The stop string that ended it; empty = none did."""
        return self._filter.stop

    def take(self, event: Event) -> Piece:
        """What an event adds.

        Raises:
            Problem: The answer has failed.
        """
        if event.done is not None:
            self.closed, self.cached = True, event.done.cached_tokens
        if self.done:
            return Piece()
        if event.done is not None:
            return self._end(event.done)
        assert event.token is not None
        self.tokens += 1
        if event.score is not None:
            self._held.append((self._seen, event.score))
        if event.token in self._ends:
            return self._finish("stop")
        mark = self._marks.get(event.token)
        text = self._pass(self._decoder.finish() + mark if mark else self._decoder.add(event.token))
        if self._filter.stopped:
            self.done = True
            return self._piece(text, "stop")
        return self._piece(text)

    def _end(self, made: Generation) -> Piece:
        if made.finish_reason == "error":
            self.done = True
            if made.cause is not None:
                raise Problem(str(made.cause))
            raise Problem(f"the answer failed: {made.error}", 500)
        return self._finish(REASONS[made.finish_reason])

    def _finish(self, reason: str) -> Piece:
        """The last piece: what was held back."""
        text = self._pass(self._decoder.finish())
        if self._filter.stopped:
            reason = "stop"
        else:
            rest = self._filter.finish()
            self._shown += len(rest)
            text += rest
        self.done = True
        return self._piece(text, reason)

    def _piece(self, text: str, finish: str = "") -> Piece:
        """What text adds, with log-probabilities of tokens."""
        if self._reader is None:
            return Piece([Part("text", text)] * bool(text), self._release(), finish)
        parts = self._reader.add(text)
        if finish:
            parts += self._reader.finish()
        return Piece(parts, self._release(), finish, self._reader.cut)

    def _pass(self, text: str) -> str:
        self._seen += len(text)
        passed = self._filter.add(text) if text else ""
        self._shown += len(passed)
        return passed

    def _release(self) -> list[tuple[int, TokenLogprob]]:
        """Log-probabilities of tokens whose text has been shown; those after a stop string are dropped."""
        if not self._held:
            return []
        whole = not self._filter.stopped and self._seen == self._shown
        count = len(self._held) if whole else sum(start < self._shown for start, _ in self._held)
        released, self._held = self._held[:count], self._held[count:]
        return released
