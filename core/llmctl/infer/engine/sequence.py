"""A request on its way: its rows in the cache, and the tokens that their logits give it.

``Answering`` follows one row, beam search (``beams``) several.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from llmctl.infer.engine.block_manager import Row, Tables
from llmctl.infer.engine.prompt_lookup import Lookup
from llmctl.infer.executors.base import Float
from llmctl.infer.request import Event, Generation, Request
from llmctl.infer.sampling import TokenLogprob
from llmctl.infer.sampling.logprobs import token_logprob
from llmctl.infer.sampling.rows import SamplerInput, sampler_input
from llmctl.infer.sampling.single import generator_for


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of a row in a step.

    Attributes:
        job: Whose row it is.
        row: The row.
        count: Its next tokens.
        drafts: Guesses after its last one.
    """

    job: Job
    row: Row
    count: int
    drafts: list[int]

    @property
    def finishes(self) -> bool:
        """Whether the row's last token is among them, so that logits are wanted."""
        return self.count == self.row.pending


@dataclass(frozen=True, slots=True)
class Found:
    """What a step gave a part: a row for its last token and for each of its guesses.

    Attributes:
        logits_LV: Scores of the vocabulary.
        tokens: What was chosen of each.
        faults: Why nothing could be chosen; empty = something was.
    """

    logits_LV: Float
    tokens: list[int]
    faults: list[str]


class Job(Protocol):
    """A request on its way.

    Attributes:
        id: Of the request.
        request: The request.
        rows: Its rows; their blocks belong to ``tables``.
        width: Most rows that it will have.
        told: Tokens of its answer that were told.
        drafting: Whether there may be draft tokens.
    """

    id: int
    request: Request
    rows: list[Row]
    width: int
    told: int
    drafting: bool

    def guess(self, count: int) -> list[int]:
        """At most this many draft tokens after the only row."""

    def choices(self, part: Part) -> list[SamplerInput]:
        """How tokens are chosen after the part's last token and after each of its guesses, if these are right."""

    def advance(self, part: Part, found: Found) -> list[Event]:
        """Takes what a step gave the part."""

    def ended(self, reason: str, error: str = "", length: int | None = None) -> Generation:
        """The answer so far, or its first ``length`` tokens, ended for a reason from outside."""


class Answering:
    """An answer, token by token.

    Args:
        number: Of the request.
        request: The request.
        row: The prompt.
        tables: Holds the row's blocks.
        end_ids: Tokens that end an answer.
    """

    def __init__(self, number: int, request: Request, row: Row, tables: Tables, end_ids: Collection[int]) -> None:
        self.id, self.request, self.rows, self.width = number, request, [row], 1
        self.told, self.drafting = 0, request.draft > 0
        self._tables, self._end_ids = tables, end_ids
        self._draws = generator_for(request.options, request.index)
        self._drawn: list[float] = []
        self._lookup = Lookup(row.ids) if request.draft else None
        self._prompt = len(row.ids)
        self._scores: list[TokenLogprob] = []

    def guess(self, count: int) -> list[int]:
        """At most so many guesses; none where the request does not want any or the answer is nearly complete."""
        if not self._lookup:
            return []
        # The step gives one token more than it has guesses.
        room = self.request.options.max_new_tokens - self._generated - 1
        return self._lookup.guess(min(count, self.request.draft, room))

    def choices(self, part: Part) -> list[SamplerInput]:
        """As the options say, each with a draw of its own; draws that turn out not to be needed are for the next step."""
        options, count = self.request.options, 1 + len(part.drafts)
        while options.sample and len(self._drawn) < count:
            self._drawn.append(self._draws.random())
        choices = []
        for index in range(count):
            context = part.row.ids + part.drafts[:index] if options.penalised else ()
            draw = self._drawn[index] if options.sample else 0.0
            choices.append(sampler_input(options, context, self._generated + index, self._end_ids, draw))
        return choices

    def advance(self, part: Part, found: Found) -> list[Event]:
        """Takes tokens as long as they are the guessed ones, and one more."""
        row, options, events = part.row, self.request.options, list[Event]()
        rows = zip(found.logits_LV, found.tokens, found.faults, [*part.drafts, None], strict=True)
        for logits_V, token, fault, guessed in rows:
            if fault:
                return [*events, Event(self.id, done=self.ended("error", fault))]
            if token in self._end_ids:
                return [*events, Event(self.id, done=self.ended("end"))]
            row.ids.append(token)
            del self._drawn[:1]
            scored = token_logprob(logits_V, token, options)
            if scored:
                self._scores.append(scored)
            events.append(Event(self.id, token, scored))
            if self._generated == options.max_new_tokens:
                return [*events, Event(self.id, done=self.ended("length"))]
            if token != guessed:
                break
            self._tables.commit(row, 1)
        return events

    def ended(self, reason: str, error: str = "", length: int | None = None) -> Generation:
        """The answer so far, or its first ``length`` tokens."""
        return Generation(self.rows[0].ids[self._prompt :][:length], reason, error, self._scores[:length])

    @property
    def _generated(self) -> int:
        return len(self.rows[0].ids) - self._prompt
