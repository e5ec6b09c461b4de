"""A request on its way: its rows in the cache, and the tokens that their logits give it.

``Answering`` follows one row, beam search (``beams``) several.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from llmctl.infer.batch import Float
from llmctl.infer.drafts import Lookup
from llmctl.infer.request import Event, Generation, Request
from llmctl.infer.sampling import BrokenLogitsError, TokenScore, choose, generator_for, score
from llmctl.infer.tables import Row, Tables


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


class Job(Protocol):
    """A request on its way.

    Attributes:
        id: Of the request.
        request: The request.
        rows: Its rows; their blocks belong to ``tables``.
        width: Most rows that it will have.
        told: Tokens of its answer that were told.
    """

    id: int
    request: Request
    rows: list[Row]
    width: int
    told: int

    def guess(self, count: int) -> list[int]:
        """At most so many guesses of what follows the only row."""

    def advance(self, part: Part, logits_LV: Float) -> list[Event]:
        """Takes the logits of the part's last token and of its guesses."""

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
        self.told = 0
        self._tables, self._end_ids = tables, end_ids
        self._draws = generator_for(request.options, request.index)
        self._lookup = Lookup(row.ids) if request.draft else None
        self._prompt = len(row.ids)
        self._scores: list[TokenScore] = []

    def guess(self, count: int) -> list[int]:
        """At most so many guesses; none where the request does not want any or the answer is nearly complete."""
        if not self._lookup:
            return []
        # The step gives one token more than it has guesses.
        room = self.request.options.max_new_tokens - self._generated - 1
        return self._lookup.guess(min(count, self.request.draft, room))

    def advance(self, part: Part, logits_LV: Float) -> list[Event]:
        """Chooses tokens as long as they are the guessed ones, and one more."""
        row, options, events = part.row, self.request.options, []
        for logits_V, guessed in zip(logits_LV, [*part.drafts, None], strict=True):
            try:
                token = choose(logits_V, row.ids, self._generated, options, self._end_ids, self._draws)
            except BrokenLogitsError as error:
                return [*events, Event(self.id, done=self.ended("error", str(error)))]
            if token in self._end_ids:
                return [*events, Event(self.id, done=self.ended("end"))]
            row.ids.append(token)
            scored = score(logits_V, token, options)
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
